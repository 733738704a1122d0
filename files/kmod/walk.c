// SPDX-License-Identifier: GPL-2.0-only
/*
 * Finding the descriptors of tagged sockets in every process, and having each
 * process close its own.
 *
 * A slot is never cleared from outside: a task whose table is not shared uses
 * its files without a reference. So the task itself does it, on its way to
 * user space, by task_work; TWA_SIGNAL takes it out of an interruptible sleep.
 * A stopped or frozen one does it as the first thing when it goes on.
 *
 * tasklist_lock is not exported, so the walk goes under RCU and may miss a
 * task that is being forked while it passes. revoke.c walks again until nobody
 * holds the socket.
 */
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hashtable.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/nsproxy.h>
#include <linux/pid.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/static_call.h>
#include <linux/task_work.h>
#include <linux/wait.h>
#include <net/net_namespace.h>

#include "slim.h"

/* A task that is to close its own slots, until it has. */
struct slim_closer {
	struct callback_head work;
	struct hlist_node node;
	const struct task_struct *task;	/* alive: its death runs the work */
};

/* By task. A stopped one keeps its closer for as long as it is stopped. */
static DEFINE_HASHTABLE(slim_closers, 12);
static DEFINE_SPINLOCK(slim_closers_lock);
static unsigned int slim_closers_count;
static DECLARE_WAIT_QUEUE_HEAD(slim_closers_gone);

/* task_work_add() is exported by some distributions only. */
typedef int slim_task_work_add_fn(struct task_struct *task, struct callback_head *work,
				  enum task_work_notify_mode mode);
DEFINE_STATIC_CALL_RET0(slim_task_work_add, slim_task_work_add_fn);

static struct kmem_cache *slim_closer_cache;

int __init slim_walk_init(void)
{
	void *address = slim_symbol("task_work_add");

	slim_closer_cache = slim_cache("slim_closer", sizeof(struct slim_closer), 0);
	if (!slim_closer_cache)
		return -ENOMEM;
	if (!address) {
		pr_err("task_work_add is not to be found; not loaded\n");
		return -ENOENT;
	}
	static_call_update(slim_task_work_add, (slim_task_work_add_fn *)address);
	return 0;
}

/* After slim_settle(): every closer has run. */
void slim_walk_exit(void)
{
	kmem_cache_destroy(slim_closer_cache);
}

static struct socket *slim_tagged_socket(struct file *file)
{
	struct socket *sock;

	if (!S_ISSOCK(file_inode(file)->i_mode))
		return NULL;
	sock = sock_from_file(file);
	return sock && slim_is_tagged(sock->sk) ? sock : NULL;
}

/*
 * Must the owner of a table with this network namespace give the socket up?
 * Those in the socket's own, the router above all, keep theirs, dead as they
 * are: a descriptor must not vanish from under the router while it hands it
 * over or closes it.
 */
static bool slim_must_close(const struct socket *sock, const struct net *net)
{
	return !net || !net_eq(net, sock_net(sock->sk));
}

/* Of a task that cannot change it meanwhile: ourselves, or under its lock. */
static const struct net *slim_task_net(const struct task_struct *task)
{
	return task->nsproxy ? task->nsproxy->net_ns : NULL;
}

struct slim_search {
	const struct net *net;
	bool found;		/* something that must be closed */
};

/*
 * Note of each revoked socket who holds it; all of the table, as others may
 * lie behind the first. iterate_fd() calls it under the table's lock.
 */
static int slim_note_revoked(const void *data, struct file *file, unsigned int fd)
{
	struct slim_search *search = (struct slim_search *)data;
	struct socket *sock = slim_tagged_socket(file);
	struct slim_tag *tag;
	bool outside;

	if (!sock || !slim_is_revoked(sock))
		return 0;
	outside = slim_must_close(sock, search->net);
	search->found |= outside;
	rcu_read_lock();
	tag = slim_tag_find(sock->sk);
	if (tag && outside)
		WRITE_ONCE(tag->outside, true);
	else if (tag)
		WRITE_ONCE(tag->kept, true);
	rcu_read_unlock();
	return 0;
}

static bool slim_holds_revoked(struct task_struct *task)
{
	struct slim_search search = {};

	task_lock(task);
	search.net = slim_task_net(task);
	if (task->files)
		iterate_fd(task->files, 0, slim_note_revoked, &search);
	task_unlock(task);
	return search.found;
}

/*
 * Take the slot of a revoked socket out of our own table, which close_fd()
 * would do by number: another thread may have put another file there since.
 */
static int slim_take_slot(const void *data, struct file *file, unsigned int fd)
{
	struct files_struct *files = current->files;
	struct socket *sock = slim_tagged_socket(file);
	struct fdtable *table;

	if (!sock || !slim_is_revoked(sock) || !slim_must_close(sock, slim_task_net(current)))
		return 0;
	table = files_fdtable(files);
	rcu_assign_pointer(table->fd[fd], NULL);
	__clear_bit(fd, table->open_fds);
	__clear_bit(fd / BITS_PER_LONG, table->full_fds_bits);
	if (fd < files->next_fd)
		files->next_fd = fd;
	*(struct file **)data = file;
	return fd + 1;
}

static void slim_close_own(void)
{
	struct files_struct *files = current->files;
	struct file *file;
	int fd = 0;

	/* A dying task has let go of its table, or is about to. */
	while (files && (fd = iterate_fd(files, fd, slim_take_slot, &file)) > 0) {
		slim_watched_keep(file);
		filp_close(file, files);
		atomic64_inc(&slim_stats.closed);
	}
}

static void slim_closer_run(struct callback_head *work)
{
	struct slim_closer *closer = container_of(work, struct slim_closer, work);

	slim_close_own();
	spin_lock(&slim_closers_lock);
	hash_del(&closer->node);
	slim_closers_count--;
	spin_unlock(&slim_closers_lock);
	wake_up_all(&slim_closers_gone);
	kmem_cache_free(slim_closer_cache, closer);
	/* slim_exit() waits for a task that is preempted behind this. */
	module_put(THIS_MODULE);
}

static bool slim_closer_pending(const struct task_struct *task)
{
	struct slim_closer *closer;
	bool found = false;

	spin_lock(&slim_closers_lock);
	hash_for_each_possible(slim_closers, closer, node, (unsigned long)task) {
		if (closer->task == task) {
			found = true;
			break;
		}
	}
	spin_unlock(&slim_closers_lock);
	return found;
}

static bool slim_closer_add(struct task_struct *task)
{
	struct slim_closer *closer;

	/*
	 * The sweeper holds no tag, so that the last one may go while it walks.
	 * Once rmmod has begun nobody holds a revoked socket any more.
	 */
	if (!try_module_get(THIS_MODULE))
		return false;
	closer = kmem_cache_alloc(slim_closer_cache, GFP_KERNEL);
	if (!closer) {
		module_put(THIS_MODULE);
		return false;
	}
	init_task_work(&closer->work, slim_closer_run);
	closer->task = task;
	spin_lock(&slim_closers_lock);
	hash_add(slim_closers, &closer->node, (unsigned long)task);
	slim_closers_count++;
	spin_unlock(&slim_closers_lock);
	if (!static_call(slim_task_work_add)(task, &closer->work, TWA_SIGNAL))
		return true;

	/* The task is past its end, and its descriptors with it. */
	spin_lock(&slim_closers_lock);
	hash_del(&closer->node);
	slim_closers_count--;
	spin_unlock(&slim_closers_lock);
	kmem_cache_free(slim_closer_cache, closer);
	module_put(THIS_MODULE);
	return false;
}

unsigned int slim_walk_pending(void)
{
	return READ_ONCE(slim_closers_count);
}

/* Wait until no more than `before` closers are pending; false: not in time. */
bool slim_walk_wait(unsigned int before, unsigned long timeout)
{
	return wait_event_timeout(slim_closers_gone, slim_walk_pending() <= before, timeout);
}

/* A copy of the list of tasks, one per table as a rule, each with a reference. */
struct slim_tasks {
	struct task_struct **task;
	size_t count;
	size_t room;
};

static bool slim_task_wanted(struct task_struct *leader, struct task_struct *task)
{
	if (task->flags & (PF_KTHREAD | PF_EXITING | PF_IO_WORKER))
		return false;
	if (!READ_ONCE(task->files))
		return false;
	/*
	 * One thread speaks for its process, unless it has been asked already
	 * and does not answer (it may wait for a vfork child or a disk).
	 */
	return task == leader || READ_ONCE(task->files) != READ_ONCE(leader->files) ||
	       slim_closer_pending(leader);
}

static int slim_tasks_get(struct slim_tasks *tasks)
{
	struct task_struct *leader, *task;
	size_t more;

	tasks->task = NULL;
	tasks->room = 1024;
again:
	tasks->count = 0;
	tasks->task = kvmalloc_array(tasks->room, sizeof(*tasks->task), GFP_KERNEL);
	if (!tasks->task)
		return -ENOMEM;
	more = 0;
	rcu_read_lock();
	for_each_process_thread(leader, task) {
		if (!slim_task_wanted(leader, task))
			continue;
		if (tasks->count == tasks->room) {
			more++;
			continue;
		}
		get_task_struct(task);
		tasks->task[tasks->count++] = task;
	}
	rcu_read_unlock();
	if (!more)
		return 0;
	tasks->room += more + more / 4 + 64;
	while (tasks->count)
		put_task_struct(tasks->task[--tasks->count]);
	kvfree(tasks->task);
	goto again;
}

static void slim_tasks_put(struct slim_tasks *tasks)
{
	while (tasks->count)
		put_task_struct(tasks->task[--tasks->count]);
	kvfree(tasks->task);
}

/* Where a walk that came to its end before the last process had to stop. */
static size_t slim_walk_from;

/*
 * Once through all processes: whoever holds a revoked socket is asked to close
 * it, and each tag knows who does. *queued: how many were asked just now.
 * Returns whether everybody was looked at. At the time `end` it stops, and the
 * next walk begins there: many descriptors of some must not keep it from the
 * others'. One walk at a time.
 */
bool slim_walk_close(unsigned long end, unsigned int *queued)
{
	struct slim_tasks tasks;
	size_t from = slim_walk_from, i;
	bool whole;

	*queued = 0;
	slim_walk_from = 0;
	if (slim_tasks_get(&tasks))
		return false;
	for (i = 0; i < tasks.count; i++) {
		struct task_struct *task = tasks.task[(from + i) % tasks.count];

		if (i && time_after(jiffies, end)) {
			slim_walk_from = (from + i) % tasks.count;
			break;
		}
		cond_resched();
		if (!slim_holds_revoked(task))
			continue;
		if (task == current)
			slim_close_own();
		else if (!slim_closer_pending(task) && slim_closer_add(task))
			(*queued)++;
	}
	whole = i == tasks.count;
	slim_tasks_put(&tasks);
	return whole;
}

static int slim_match_holder(const void *data, struct file *file, unsigned int fd)
{
	struct socket *sock = slim_tagged_socket(file);
	struct slim_tag *tag;

	rcu_read_lock();
	tag = sock ? slim_tag_find(sock->sk) : NULL;
	if (tag)
		WRITE_ONCE(tag->holder, *(const pid_t *)data);
	rcu_read_unlock();
	return 0;
}

static void slim_holder_none(struct slim_tag *tag, void *data)
{
	WRITE_ONCE(tag->holder, 0);
}

/* For the reader of "tags": note one process that holds each tagged socket. */
void slim_walk_holders(void)
{
	struct slim_tasks tasks;
	unsigned int bucket;
	size_t i;

	for (bucket = 0; bucket < SLIM_BUCKETS; bucket++)
		slim_tags_each(bucket, slim_holder_none, NULL);
	if (slim_tasks_get(&tasks))
		return;
	for (i = 0; i < tasks.count; i++) {
		struct task_struct *task = tasks.task[i];
		pid_t pid = task_tgid_nr(task);

		cond_resched();
		task_lock(task);
		if (task->files)
			iterate_fd(task->files, 0, slim_match_holder, &pid);
		task_unlock(task);
	}
	slim_tasks_put(&tasks);
}
