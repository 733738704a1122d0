// SPDX-License-Identifier: GPL-2.0-only
/*
 * SlimKernModule: a socket that the router hands to a container is good for
 * one thing, talking on its one connection, until the router revokes it.
 *
 * It does not decide who gets a socket, and it does not know containers: a
 * caller is a stranger when its network namespace is not the socket's own.
 * It does not stop a process that has CAP_SYS_MODULE, CAP_SYS_ADMIN or
 * CAP_NET_ADMIN in the initial user namespace.
 */
#include <linux/init.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/workqueue.h>

#include "slim.h"

/*
 * For aborts, which may come to wait for a socket's lock; and for what must go
 * on whoever sits on one: looking for leftovers, and letting go of files.
 */
struct workqueue_struct *slim_aborters, *slim_sweepers;

/*
 * Nothing of ours is referred to any more when this is called (or the module
 * could not be unloaded), but a task may still be on the last instructions of
 * a function that gave the last reference back.
 */
static void slim_settle(void)
{
	rcu_barrier();
	synchronize_rcu_tasks();
}

static void slim_workers_exit(void)
{
	if (slim_aborters)
		destroy_workqueue(slim_aborters);
	if (slim_sweepers)
		destroy_workqueue(slim_sweepers);
}

static int __init slim_workers_init(void)
{
	slim_aborters = alloc_workqueue("slim_abort", WQ_UNBOUND, WQ_UNBOUND_MAX_ACTIVE);
	slim_sweepers = alloc_workqueue("slim_sweep", WQ_UNBOUND, 0);
	return slim_aborters && slim_sweepers ? 0 : -ENOMEM;
}

static int __init slim_init(void)
{
	int error;

	error = slim_workers_init();
	if (error)
		goto error_workers;
	error = slim_tags_init();
	if (error)
		goto error_workers;
	error = slim_ops_init();
	if (error)
		goto error_workers;
	error = slim_walk_init();
	if (error)
		goto error_ops;
	error = slim_hooks_attach();
	if (error)
		goto error_ops;
	error = slim_selftest();
	if (error)
		goto error_hooks;
	slim_stats = (struct slim_stats){};
	error = slim_control_init();
	if (error)
		goto error_hooks;
	pr_info("version " SLIM_VERSION " is on guard\n");
	return 0;

error_hooks:
	slim_hooks_detach();
error_ops:
	slim_ops_exit();
error_workers:
	slim_workers_exit();
	slim_settle();
	slim_walk_exit();
	slim_tags_exit();
	return error;
}

/* Only without a tag: each has references to the module. */
static void __exit slim_exit(void)
{
	slim_control_exit();
	slim_revoke_exit();
	slim_watched_exit();
	slim_hooks_detach();
	slim_workers_exit();
	slim_ops_exit();
	slim_settle();
	/* These say so if a tag or a closer was forgotten. */
	slim_walk_exit();
	slim_tags_exit();
	pr_info("unloaded\n");
}

module_init(slim_init);
module_exit(slim_exit);

MODULE_DESCRIPTION("SlimKernModule: tags the sockets that containers are handed");
MODULE_AUTHOR("The slim.overlay authors");
MODULE_LICENSE("GPL");
MODULE_VERSION(SLIM_VERSION);
