/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fork(): the child gets the table (its descriptors are the same sockets), but
 * not the parent's connections to the worker or the connects that it waits for.
 * A vfork child shares our memory until it execs: slim_foreign_process() tells,
 * and it changes nothing.
 */
#include "slim.h"

#include <pthread.h>

static void before(void)
{
	atomic_fetch_add(&slim_generation, 1);
}

static void child(void)
{
	slim_registry_fork_child();
	slim_control_fork_child();
	slim_pending_fork_child();
}

__attribute__((constructor)) static void watch_forks(void)
{
	pthread_atfork(before, NULL, child);
	slim_exec_init();
}
