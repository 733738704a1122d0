/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * SlimKernModule: what its files know of each other.
 *
 * tag.c       the record of a tagged socket and where it is found
 * ops.c       the private proto_ops of tagged sockets, live and revoked
 * hooks.c     ftrace hooks for the calls that proto_ops do not see
 * revoke.c    a tag's end: mark, abort, take the descriptors away
 * walk.c      finding and closing descriptors in other processes
 * watched.c   what epoll sets watch stays until they have heard of the end
 * control.c   /proc/slim_kmod/control
 * report.c    /proc/slim_kmod/{tags,stats,version}
 * selftest.c  proof, at load, that the hooks refuse and let through
 */
#ifndef SLIM_H
#define SLIM_H

#undef pr_fmt
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/list.h>
#include <linux/net.h>
#include <linux/types.h>
#include <linux/workqueue.h>
#include <net/sock.h>

#include "compat.h"

#define SLIM_VERSION	"1.0.0"

enum slim_state {
	SLIM_LIVE = 1,
	SLIM_REVOKED = 2,
};

/* One tagged socket. Lives from TAG until the socket is destroyed. */
struct slim_tag {
	struct hlist_node node;		/* in the table, by cookie */
	struct rcu_head rcu;
	struct delayed_work abort;	/* tcp_abort() from a worker, see revoke.c */
	unsigned long abort_delay;	/* jiffies to its next try */
	bool aborted;
	struct list_head batch;		/* one REVOKE write, under slim_revoking */
	struct sock *sk;		/* valid while in the table */
	void (*destruct)(struct sock *sk);	/* the socket's own */
	u64 cookie;			/* SO_COOKIE */
	u64 born;			/* ktime_get_ns() */
	enum slim_state state;		/* changed under the table's lock */
	pid_t holder;			/* last walk's finding, for a reader */
	bool kept;			/* last walk's: somebody of the router's has a copy */
	bool outside;			/* last walk's: somebody else has one */
	struct file *file;		/* kept for epoll sets, see watched.c */
	struct list_head watched;
	bool seen;			/* by a waiter of its epoll set */
	unsigned long kept_until;	/* jiffies */
};

/* The operations of one address family: what it had, and our two sets. */
struct slim_family {
	const struct proto_ops *base;
	struct proto_ops live;
	struct proto_ops revoked;
};

/* Every call that can be refused; names in report.c. */
enum slim_call {
	SLIM_CALL_ACCEPT,
	SLIM_CALL_BIND,
	SLIM_CALL_CHOWN,
	SLIM_CALL_CONNECT,
	SLIM_CALL_GETNAME,
	SLIM_CALL_GETSOCKOPT,
	SLIM_CALL_IOCTL,
	SLIM_CALL_LISTEN,
	SLIM_CALL_MMAP,
	SLIM_CALL_RECVMSG,
	SLIM_CALL_SENDMSG,
	SLIM_CALL_SETSOCKOPT,
	SLIM_CALLS,
};

struct slim_stats {
	atomic64_t tags;		/* in the table now */
	atomic64_t tagged;
	atomic64_t untagged;
	atomic64_t revoked;
	atomic64_t closed;		/* descriptors taken from processes */
	atomic64_t leftovers;		/* sockets still held at the end of a REVOKE */
	atomic64_t denied[SLIM_CALLS];
};

extern struct slim_stats slim_stats;
extern struct slim_family slim_families[2];
extern struct task_struct *slim_tester;

/* main.c */
extern struct workqueue_struct *slim_aborters, *slim_sweepers;

/* tag.c */
int slim_tags_init(void);
void slim_tags_exit(void);
void slim_destruct(struct sock *sk);
int slim_tag(struct socket *sock, u64 cookie);
int slim_untag(struct socket *sock, u64 cookie);
struct slim_tag *slim_tag_find(const struct sock *sk);
struct slim_tag *slim_tag_revoke(u64 cookie, bool *fresh);
unsigned int slim_tags_held(void);
void slim_tags_each(unsigned int bucket, void (*each)(struct slim_tag *tag, void *data),
		    void *data);

#define SLIM_BUCKETS	16384

/* ops.c */
int slim_ops_init(void);
void slim_ops_exit(void);
void slim_ops_set(struct socket *sock, enum slim_state state);

/* hooks.c */
int slim_hooks_attach(void);
void slim_hooks_detach(void);
const char *slim_hook_name(unsigned int index);
void *slim_symbol(const char *name);

/* revoke.c */
void slim_revoke_exit(void);
void slim_abort_work(struct work_struct *work);
int slim_revoke(const u64 *cookies, size_t count);

/* walk.c */
int slim_walk_init(void);
void slim_walk_exit(void);
bool slim_walk_close(unsigned long end, unsigned int *queued);
void slim_walk_holders(void);
bool slim_walk_wait(unsigned int before, unsigned long timeout);
unsigned int slim_walk_pending(void);

/* watched.c */
void slim_watched_keep(struct file *file);
void slim_watched_seen(struct file *file);
bool slim_watched_only(struct slim_tag *tag);
void slim_watched_exit(void);

/* control.c, report.c */
int slim_control_init(void);
void slim_control_exit(void);
int slim_report_init(struct proc_dir_entry *dir);
int slim_may_control(const struct file *file);

/* selftest.c */
int slim_selftest(void);

/* A socket's destructor is its tag: one comparison says whether it has one. */
static inline bool slim_is_tagged(const struct sock *sk)
{
	return sk && READ_ONCE(sk->sk_destruct) == slim_destruct;
}

static inline const struct slim_family *slim_family(const struct sock *sk)
{
	return &slim_families[sk->sk_family == AF_INET6];
}

/* The operations in use are the state: a live call notices on its way out. */
static inline bool slim_is_revoked(const struct socket *sock)
{
	return READ_ONCE(sock->ops) == &slim_family(sock->sk)->revoked;
}

bool slim_is_outside(const struct sock *sk);
int slim_deny(enum slim_call call);

#endif
