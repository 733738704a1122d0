// SPDX-License-Identifier: GPL-2.0-only
/*
 * Revoked sockets in an epoll set.
 *
 * An epoll set has no reference to the files in it: one that goes takes its
 * pending event along. A waiter that has not run since the abort woke it would
 * hear nothing and wait for ever, and a loop that was busy would never learn
 * of the connection's end. So the file of a revoked socket is kept for a while
 * after its descriptors have been taken. It is dead as it is.
 *
 * A level-triggered set reports it again and again, and nobody can delete the
 * registration; the descriptor's number may be another connection's by then.
 * So once the one set that watches it has looked, the file goes soon. With
 * several sets nobody knows which of them has, so that it stays its time.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/jiffies.h>
#include <linux/limits.h>
#include <linux/list.h>
#include <linux/minmax.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>
#include <net/sock.h>

#include "slim.h"

/* Long for an event loop, short for the memory of a socket. */
#define SLIM_WATCHED_TIME	(5 * HZ)
/* Once it has been seen: other waiters of the same set may be on their way. */
#define SLIM_SEEN_TIME		(HZ / 10)

static void slim_watched_end(struct work_struct *work);
static DECLARE_DELAYED_WORK(slim_watched_worker, slim_watched_end);

/* Tags with a file that is kept, each list in the order of their ends. */
static LIST_HEAD(slim_watched);
static LIST_HEAD(slim_seen);
static DEFINE_SPINLOCK(slim_watched_lock);

/* A process lets go of a revoked socket's file, which the caller still has. */
void slim_watched_keep(struct file *file)
{
	struct slim_tag *tag;

	if (!READ_ONCE(file->f_ep))
		return;
	/* It goes with the socket, and so not before the file. */
	tag = slim_tag_find(sock_from_file(file)->sk);
	if (!tag)
		return;
	spin_lock(&slim_watched_lock);
	if (!tag->file) {
		tag->file = get_file(file);
		tag->kept_until = jiffies + SLIM_WATCHED_TIME;
		list_add_tail(&tag->watched, &slim_watched);
		queue_delayed_work(slim_sweepers, &slim_watched_worker, SLIM_WATCHED_TIME);
	}
	spin_unlock(&slim_watched_lock);
}

/* Does one epoll set, and no more, watch the file? It has a list of them. */
static bool slim_watched_once(struct file *file)
{
	struct hlist_head *sets;
	bool once;

	spin_lock(&file->f_lock);
	sets = file->f_ep;
	once = sets && sets->first && !sets->first->next;
	spin_unlock(&file->f_lock);
	return once;
}

/* Somebody polls a revoked socket, whose file the caller has. */
void slim_watched_seen(struct file *file)
{
	struct slim_tag *tag = slim_tag_find(sock_from_file(file)->sk);

	if (!tag || !READ_ONCE(tag->file) || !slim_watched_once(file))
		return;
	spin_lock(&slim_watched_lock);
	if (tag->file && !tag->seen) {
		tag->seen = true;
		tag->kept_until = jiffies + SLIM_SEEN_TIME;
		list_move_tail(&tag->watched, &slim_seen);
		/* It finds out when the next one is due. */
		mod_delayed_work(slim_sweepers, &slim_watched_worker, 0);
	}
	spin_unlock(&slim_watched_lock);
}

/* Under RCU or a reference to the socket: is ours the last one to its file? */
bool slim_watched_only(struct slim_tag *tag)
{
	bool only;

	spin_lock(&slim_watched_lock);
	only = tag->file && file_count(tag->file) == 1;
	spin_unlock(&slim_watched_lock);
	return only;
}

/* The first of a list, if its time has come; else *wait is no longer than that. */
static struct slim_tag *slim_watched_due(struct list_head *list, unsigned long *wait)
{
	struct slim_tag *tag = list_first_entry_or_null(list, struct slim_tag, watched);

	if (tag && time_before(jiffies, tag->kept_until)) {
		*wait = min(*wait, tag->kept_until - jiffies);
		return NULL;
	}
	return tag;
}

static struct file *slim_watched_next(void)
{
	unsigned long wait = ULONG_MAX;
	struct file *file = NULL;
	struct slim_tag *tag;

	spin_lock(&slim_watched_lock);
	tag = slim_watched_due(&slim_seen, &wait);
	if (!tag)
		tag = slim_watched_due(&slim_watched, &wait);
	if (tag) {
		list_del(&tag->watched);
		file = tag->file;
		tag->file = NULL;
		tag->seen = false;
	} else if (wait != ULONG_MAX) {
		mod_delayed_work(slim_sweepers, &slim_watched_worker, wait);
	}
	spin_unlock(&slim_watched_lock);
	return file;
}

static void slim_watched_end(struct work_struct *work)
{
	struct file *file;

	while ((file = slim_watched_next()))
		fput(file);
}

void slim_watched_exit(void)
{
	cancel_delayed_work_sync(&slim_watched_worker);
}
