// SPDX-License-Identifier: GPL-2.0-only
/*
 * Revoked sockets in an epoll set.
 *
 * An epoll set has no reference to the files in it: one that goes takes its
 * pending event along. A waiter that has not run since the abort woke it would
 * hear nothing and wait for ever, and a loop that was busy would never learn
 * of the connection's end. So the file of a revoked socket is kept for a while
 * after its descriptors have been taken. It is dead as it is.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>
#include <net/sock.h>

#include "slim.h"

/* Long for an event loop, short for the memory of a socket. */
#define SLIM_WATCHED_TIME	(5 * HZ)

static void slim_watched_end(struct work_struct *work);
static DECLARE_DELAYED_WORK(slim_watched_worker, slim_watched_end);

/* Tags with a file that is kept, the oldest first. */
static LIST_HEAD(slim_watched);
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

/* Under RCU or a reference to the socket: is ours the last one to its file? */
bool slim_watched_only(struct slim_tag *tag)
{
	bool only;

	spin_lock(&slim_watched_lock);
	only = tag->file && file_count(tag->file) == 1;
	spin_unlock(&slim_watched_lock);
	return only;
}

static struct file *slim_watched_next(void)
{
	struct file *file = NULL;
	struct slim_tag *tag;

	spin_lock(&slim_watched_lock);
	tag = list_first_entry_or_null(&slim_watched, struct slim_tag, watched);
	if (tag && time_before(jiffies, tag->kept_until)) {
		queue_delayed_work(slim_sweepers, &slim_watched_worker,
				   tag->kept_until - jiffies);
	} else if (tag) {
		list_del(&tag->watched);
		file = tag->file;
		tag->file = NULL;
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
