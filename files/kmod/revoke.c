// SPDX-License-Identifier: GPL-2.0-only
/*
 * The end of a tag's connection, in this order:
 *
 * 1. Mark every socket of the request revoked: its operations answer
 *    ECONNABORTED from now on, whoever calls, for as long as it exists.
 * 2. Abort the TCP connections: the peers see a reset, sleepers wake up, and
 *    leave through slim_end() of ops.c with ECONNABORTED.
 * 3. Have every process close its descriptors, and walk again until the
 *    sockets are released. What a stopped task holds, or what waits inside a
 *    Unix socket, is left, dead as it is; it is counted, and looked for again
 *    from time to time, until it is gone.
 *
 * tcp_abort() takes the socket's lock, and a process may sit on that for as
 * long as it likes: it sends from memory that a file system of its own has to
 * bring. A worker that waited for it would be gone, and there are a few
 * hundred. So an abort that finds the lock taken is put off, and when none has
 * ended in SLIM_ABORT_LIMIT we go on; nobody can hold up the abort of others.
 * (A worker is lost to whoever takes the lock between the look at it and
 * tcp_abort(), some instructions long, and only while he keeps it.)
 *
 * Steps 1 and 2 wait for no other revocation. Step 3 does: one walk serves
 * every socket that is revoked.
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <net/sock.h>
#include <net/tcp.h>

#include "slim.h"

/* Without an abort that ends, and in all. */
#define SLIM_ABORT_LIMIT	(HZ / 2)
#define SLIM_ABORTS_LIMIT	(2 * HZ)
/* Between two looks at a lock that is taken: from one jiffy up to this. */
#define SLIM_ABORT_DELAY	(HZ / 4)
#define SLIM_CLOSE_LIMIT	(HZ / 10)
#define SLIM_WALK_LIMIT		(5 * HZ)
/* Walks without any progress before what is left is called a leftover. */
#define SLIM_IDLE_WALKS		5
/* Between later looks at leftovers: from and up to. */
#define SLIM_SWEEP_FIRST	HZ
#define SLIM_SWEEP_LAST		(30 * HZ)
/* A revocation waits for a sweep that is under way. */
#define SLIM_SWEEP_LIMIT	(HZ / 2)

static DEFINE_MUTEX(slim_revoking);
static DECLARE_WAIT_QUEUE_HEAD(slim_aborted);

static void slim_sweep(struct work_struct *work);
static DECLARE_DELAYED_WORK(slim_sweeper, slim_sweep);
static unsigned long slim_sweep_delay;

void slim_abort_work(struct work_struct *work)
{
	struct slim_tag *tag = container_of(to_delayed_work(work), struct slim_tag, abort);
	struct sock *sk = tag->sk;

	if (sock_owned_by_user_nocheck(sk)) {
		tag->abort_delay = clamp_t(unsigned long, 2 * tag->abort_delay, 1,
					   SLIM_ABORT_DELAY);
		queue_delayed_work(slim_aborters, &tag->abort, tag->abort_delay);
		return;
	}
	tcp_abort(sk, ECONNABORTED);
	/*
	 * tcp_abort() says nothing to the waiters of a connection that was
	 * closed already.
	 */
	read_lock_bh(&sk->sk_callback_lock);
	if (sk->sk_socket) {
		WRITE_ONCE(sk->sk_err, ECONNABORTED);
		sk_error_report(sk);
	}
	read_unlock_bh(&sk->sk_callback_lock);
	WRITE_ONCE(tag->aborted, true);
	wake_up_all(&slim_aborted);
	/* The tag goes with the socket. */
	sock_put(sk);
}

/* Once for each tag: it has just been revoked. */
static void slim_abort(struct slim_tag *tag)
{
	sock_hold(tag->sk);
	queue_delayed_work(slim_aborters, &tag->abort, 0);
}

/* Has the last of *left tags been aborted? Those that have go behind them. */
static bool slim_aborts_done(struct slim_tag **tags, unsigned int *left)
{
	unsigned int i = 0;

	while (i < *left) {
		if (READ_ONCE(tags[i]->aborted)) {
			--*left;
			swap(tags[i], tags[*left]);
		} else {
			i++;
		}
	}
	return !*left;
}

static void slim_aborts_wait(struct slim_tag **tags, unsigned int count)
{
	unsigned long end = jiffies + SLIM_ABORTS_LIMIT;
	unsigned int left = count, last;

	do {
		last = left;
		if (wait_event_timeout(slim_aborted, slim_aborts_done(tags, &left),
				       SLIM_ABORT_LIMIT))
			return;
	} while (left < last && time_before(jiffies, end));
	pr_warn_ratelimited("some connections are held locked by their users; they are aborted when they let go\n");
}

/*
 * Sockets of the batch that somebody but the router and an epoll set still
 * has, as far as the last walk has seen. One that no table has at all, but
 * that has a file, waits in a queue or a ring.
 */
static unsigned int slim_batch_held(const struct list_head *batch, bool whole)
{
	struct slim_tag *tag;
	unsigned int held = 0;

	list_for_each_entry(tag, batch, batch)
		if (READ_ONCE(tag->sk->sk_socket) && !slim_watched_only(tag) &&
		    (READ_ONCE(tag->outside) || !READ_ONCE(tag->kept) || !whole))
			held++;
	return held;
}

static unsigned int slim_remove(const struct list_head *batch)
{
	unsigned long end = jiffies + SLIM_WALK_LIMIT;
	unsigned int idle = 0, last = UINT_MAX, before, queued, held;
	struct slim_tag *tag;
	bool whole;

	for (;;) {
		list_for_each_entry(tag, batch, batch) {
			WRITE_ONCE(tag->kept, false);
			WRITE_ONCE(tag->outside, false);
		}
		before = slim_walk_pending();
		whole = slim_walk_close(end, &queued);
		if (queued)
			slim_walk_wait(before, SLIM_CLOSE_LIMIT);
		held = slim_batch_held(batch, whole);
		if (queued || held < last)
			idle = 0;
		if (!held || idle >= SLIM_IDLE_WALKS || time_after(jiffies, end))
			return held;
		if (!queued)
			msleep(1U << idle++);
		last = held;
	}
}

static void slim_sweep(struct work_struct *work)
{
	unsigned int queued;

	mutex_lock(&slim_revoking);
	if (slim_tags_held()) {
		slim_walk_close(jiffies + SLIM_SWEEP_LIMIT, &queued);
		slim_sweep_delay = min_t(unsigned long, slim_sweep_delay * 2, SLIM_SWEEP_LAST);
		queue_delayed_work(slim_sweepers, &slim_sweeper, slim_sweep_delay);
	}
	mutex_unlock(&slim_revoking);
}

/* Step 3, for the tags of one request. */
static void slim_take(struct slim_tag **tags, unsigned int count)
{
	struct slim_tag *tag, *next;
	unsigned int held, i;
	bool sweep = false;
	LIST_HEAD(batch);

	mutex_lock(&slim_revoking);
	for (i = 0; i < count; i++)
		/* It may be named twice. */
		if (list_empty(&tags[i]->batch))
			list_add_tail(&tags[i]->batch, &batch);
	held = slim_remove(&batch);
	list_for_each_entry_safe(tag, next, &batch, batch) {
		/* A queue may hold what the router holds too. */
		sweep |= READ_ONCE(tag->sk->sk_socket) && !slim_watched_only(tag);
		list_del_init(&tag->batch);
	}
	if (held) {
		atomic64_add(held, &slim_stats.leftovers);
		pr_notice_ratelimited("%u of %u revoked sockets are still held (by a stopped task, in a Unix socket or an io_uring); they are dead, their descriptors go when they can\n",
				      held, count);
	}
	if (sweep) {
		slim_sweep_delay = SLIM_SWEEP_FIRST;
		mod_delayed_work(slim_sweepers, &slim_sweeper, slim_sweep_delay);
	}
	mutex_unlock(&slim_revoking);
}

/*
 * Revoke the sockets of these cookies; those that nobody knows are passed
 * over, and those that were revoked before are walked for once more. Returns
 * how many were known, or -ENOMEM.
 */
int slim_revoke(const u64 *cookies, size_t count)
{
	unsigned int known = 0, i;
	struct slim_tag **tags;
	struct slim_tag *tag;
	bool fresh;

	tags = kvmalloc_array(count, sizeof(*tags), GFP_KERNEL);
	if (!tags)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		tag = slim_tag_revoke(cookies[i], &fresh);
		if (!tag)
			continue;
		tags[known++] = tag;
		if (fresh) {
			atomic64_inc(&slim_stats.revoked);
			slim_abort(tag);
		}
	}
	if (known) {
		slim_aborts_wait(tags, known);
		slim_take(tags, known);
	}
	for (i = 0; i < known; i++)
		sock_put(tags[i]->sk);
	kvfree(tags);
	return known;
}

void slim_revoke_exit(void)
{
	cancel_delayed_work_sync(&slim_sweeper);
}
