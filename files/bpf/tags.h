/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps, and the three questions that every program asks: is the socket
 * tagged, is the tag live, and is the caller of the socket's own namespace.
 */
#ifndef SLIM_BPF_TAGS_H
#define SLIM_BPF_TAGS_H

#include "kernel.h"

#include <bpf/bpf_helpers.h>

enum {
	SLIM_LIVE = 1,
	SLIM_REVOKED = 2,
};

/* What user space writes for a socket; slim_bpf/tags.py packs the same. */
struct slim_tag {
	__u64 cookie;
	__u32 state;
	__u32 reserved;
};

/*
 * Slots of `stats`, in this order for ever: slim_bpf/stats.py names them, a
 * test compares the two. Add at the end.
 */
enum slim_stat {
	SLIM_DENIED_CONNECT,
	SLIM_DENIED_BIND,
	SLIM_DENIED_LISTEN,
	SLIM_DENIED_ACCEPT,
	SLIM_DENIED_GETSOCKNAME,
	SLIM_DENIED_GETPEERNAME,
	SLIM_DENIED_SETSOCKOPT,
	SLIM_DENIED_GETSOCKOPT,
	SLIM_DENIED_SENDMSG,
	SLIM_DENIED_RECVMSG,
	SLIM_DENIED_IOCTL,
	SLIM_DENIED_MMAP,
	SLIM_DENIED_CHOWN,
	SLIM_DENIED_URING_CMD,
	SLIM_REVOKED_TOTAL,
	SLIM_REVOKED_CALLS,
	SLIM_STATS,
};

/*
 * The tag lies in the socket itself and goes with it: dup, fork, SCM_RIGHTS,
 * pidfd_getfd and io_uring need no thought. BPF_F_CLONE: should anybody ever
 * tag a listener, its children are tagged too.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct slim_tag);
} tags SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLIM_STATS);
	__type(key, __u32);
	__type(value, __u64);
} stats SEC(".maps");

/* Cookies that the next pass of slim_mark is to revoke. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u32);
} revoke SEC(".maps");

/* SHA-256 of the object that is loaded, in hexadecimal, written by the loader. */
struct slim_about {
	char sha256[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct slim_about);
} about SEC(".maps");

static __always_inline void slim_count(__u32 stat)
{
	__u64 *number = bpf_map_lookup_elem(&stats, &stat);

	if (number)
		__sync_fetch_and_add(number, 1);
}

/*
 * The tag, or NULL. A socket without any storage, which is nearly every one,
 * costs two loads and no helper.
 */
static __always_inline struct slim_tag *slim_tag_of(struct sock *sk)
{
	if (!sk || !sk->sk_bpf_storage)
		return NULL;
	return bpf_sk_storage_get(&tags, sk, NULL, 0);
}

/*
 * May the caller do as it likes? Only if its network namespace is known and is
 * the socket's own: that is the router. Kernel threads run in the initial
 * namespace whatever they work for (io_uring's fallback work is one), so that
 * they do not count as the router. A load that faults yields 0: not ours.
 */
static __always_inline int slim_at_home(struct sock *sk)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct nsproxy *spaces;
	struct net *net;

	if (task->flags & PF_KTHREAD)
		return 0;
	spaces = task->nsproxy;
	if (!spaces)
		return 0;
	net = spaces->net_ns;
	return net && net == sk->__sk_common.skc_net.net;
}

static __always_inline int slim_refuse(struct sock *sk, __u32 stat)
{
	if (slim_at_home(sk))
		return 0;
	slim_count(stat);
	return -EPERM;
}

/* A state that nobody wrote counts as revoked: closed rather than open. */
static __always_inline int slim_is_revoked(const struct slim_tag *tag)
{
	return tag->state != SLIM_LIVE;
}

static __always_inline int slim_aborted(void)
{
	slim_count(SLIM_REVOKED_CALLS);
	return -ECONNABORTED;
}

#endif
