// SPDX-License-Identifier: GPL-2.0-only
/*
 * Secure mode by BPF LSM: what a container may do with a socket that the
 * router handed to it. Twin of the module in ../kmod; both take their answers
 * from ../kmod/allow.h.
 *
 * These programs decide and count, nothing else. They see calls, not packets;
 * they cannot take descriptors away (see README.md, "What it cannot do").
 */
#include "tags.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "../kmod/allow.h"

char LICENSE[] SEC("license") = "GPL";

/* Calls that are never allowed. */
#define SLIM_NEVER(call, stat, ...) \
	SEC("lsm/socket_" #call) \
	int BPF_PROG(slim_##call, struct socket *sock, ##__VA_ARGS__) \
	{ \
		struct sock *sk = sock->sk; \
		return slim_tag_of(sk) ? slim_refuse(sk, stat) : 0; \
	}

SLIM_NEVER(connect, SLIM_DENIED_CONNECT)
SLIM_NEVER(bind, SLIM_DENIED_BIND)
SLIM_NEVER(listen, SLIM_DENIED_LISTEN)
SLIM_NEVER(accept, SLIM_DENIED_ACCEPT)
SLIM_NEVER(getsockname, SLIM_DENIED_GETSOCKNAME)
SLIM_NEVER(getpeername, SLIM_DENIED_GETPEERNAME)

SEC("lsm/socket_setsockopt")
int BPF_PROG(slim_setsockopt, struct socket *sock, int level, int name)
{
	struct sock *sk = sock->sk;

	if (!slim_tag_of(sk) || slim_allow_set(level, name))
		return 0;
	return slim_refuse(sk, SLIM_DENIED_SETSOCKOPT);
}

SEC("lsm/socket_getsockopt")
int BPF_PROG(slim_getsockopt, struct socket *sock, int level, int name)
{
	struct sock *sk = sock->sk;

	if (!slim_tag_of(sk) || slim_allow_get(level, name))
		return 0;
	return slim_refuse(sk, SLIM_DENIED_GETSOCKOPT);
}

/*
 * send, write, sendmsg and io_uring's forms of them; from 6.5 on splice and
 * sendfile too. Before 6.5 those two go by sendpage, which has no hook and no
 * name, flag or control message either: nothing to refuse.
 */
SEC("lsm/socket_sendmsg")
int BPF_PROG(slim_sendmsg, struct socket *sock, struct msghdr *msg)
{
	struct sock *sk = sock->sk;
	struct slim_tag *tag = slim_tag_of(sk);

	if (!tag)
		return 0;
	if (slim_is_revoked(tag))
		return slim_aborted();
	if (slim_allow_send(msg->msg_flags, msg->msg_name != NULL, msg->msg_controllen))
		return 0;
	return slim_refuse(sk, SLIM_DENIED_SENDMSG);
}

SEC("lsm/socket_recvmsg")
int BPF_PROG(slim_recvmsg, struct socket *sock, struct msghdr *msg, int size, int flags)
{
	struct sock *sk = sock->sk;
	struct slim_tag *tag = slim_tag_of(sk);

	if (!tag)
		return 0;
	if (slim_is_revoked(tag))
		return slim_aborted();
	if (slim_allow_recv(flags))
		return 0;
	return slim_refuse(sk, SLIM_DENIED_RECVMSG);
}

/*
 * Allowed while the tag lives. Between mark and abort a shutdown would send
 * the peer a clean end of data where a reset is due.
 */
SEC("lsm/socket_shutdown")
int BPF_PROG(slim_shutdown, struct socket *sock)
{
	struct slim_tag *tag = slim_tag_of(sock->sk);

	return tag && slim_is_revoked(tag) ? slim_aborted() : 0;
}

/* The mode tells sockets from the rest without a helper. */
static __always_inline struct sock *slim_sock_of(struct file *file)
{
	struct socket *sock;
	struct inode *inode;

	if (!file)
		return NULL;
	inode = file->f_inode;
	if (!inode || (inode->i_mode & S_IFMT) != S_IFSOCK)
		return NULL;
	sock = bpf_sock_from_file(file);
	return sock ? sock->sk : NULL;
}

static __always_inline int slim_check_ioctl(struct file *file, unsigned int cmd)
{
	struct sock *sk = slim_sock_of(file);

	/*
	 * A KCM socket would drive the one that it attaches. It names that in the
	 * caller's memory, which may change after a look: nobody may attach any.
	 */
	if (cmd == SIOCKCMATTACH && sk && sk->__sk_common.skc_family == AF_KCM) {
		slim_count(SLIM_DENIED_IOCTL);
		return -EPERM;
	}
	if (!slim_tag_of(sk) || slim_allow_ioctl(cmd))
		return 0;
	return slim_refuse(sk, SLIM_DENIED_IOCTL);
}

SEC("lsm/file_ioctl")
int BPF_PROG(slim_ioctl, struct file *file, unsigned int cmd)
{
	return slim_check_ioctl(file, cmd);
}

/* 6.8 and stable kernels of early 2024 on; before, file_ioctl sees both forms. */
SEC("lsm/file_ioctl_compat")
int BPF_PROG(slim_ioctl32, struct file *file, unsigned int cmd)
{
	return slim_check_ioctl(file, cmd);
}

/* TCP's mmap is the door to TCP_ZEROCOPY_RECEIVE. */
SEC("lsm/mmap_file")
int BPF_PROG(slim_mmap, struct file *file)
{
	struct sock *sk = slim_sock_of(file);

	return slim_tag_of(sk) ? slim_refuse(sk, SLIM_DENIED_MMAP) : 0;
}

/*
 * io_uring's commands on sockets (6.7 on): 0 and 1 are SIOCINQ and SIOCOUTQ, 2
 * and 3 are getsockopt and setsockopt, which meet their own hooks. What later
 * kernels add is refused (uapi/linux/io_uring.h, enum io_uring_socket_op).
 */
SEC("lsm/uring_cmd")
int BPF_PROG(slim_uring_cmd, struct io_uring_cmd *command)
{
	struct sock *sk = slim_sock_of(command->file);

	if (!slim_tag_of(sk) || command->cmd_op <= 3)
		return 0;
	return slim_refuse(sk, SLIM_DENIED_URING_CMD);
}

/*
 * fchown of a socket changes sk_uid (net/socket.c, sockfs_setattr), by which
 * the host's owner match and its uid routing rules judge the packets. A
 * container's root may do it. The socket is found by its inode here, with
 * reads that the verifier does not follow, so that the tag itself is out of
 * reach: any TCP socket with storage, of another namespace, is refused.
 */
SEC("lsm/path_chown")
int BPF_PROG(slim_chown, struct path *path)
{
	struct bpf_local_storage *storage = NULL;
	struct sock *sk = NULL;
	struct net *theirs = NULL, *ours = NULL;
	struct socket_alloc *both;
	struct task_struct *task;
	struct inode *inode;
	__u16 protocol = 0;

	inode = BPF_CORE_READ(path, dentry, d_inode);
	if (!inode || (BPF_CORE_READ(inode, i_mode) & S_IFMT) != S_IFSOCK ||
	    BPF_CORE_READ(inode, i_sb, s_magic) != SOCKFS_MAGIC)
		return 0;
	both = (void *)inode - bpf_core_field_offset(struct socket_alloc, vfs_inode);
	if (BPF_CORE_READ_INTO(&sk, both, socket.sk))
		return -EPERM;
	if (!sk)
		return 0;
	if (BPF_CORE_READ_INTO(&storage, sk, sk_bpf_storage) ||
	    BPF_CORE_READ_INTO(&protocol, sk, sk_protocol) ||
	    BPF_CORE_READ_INTO(&theirs, sk, __sk_common.skc_net.net))
		return -EPERM;
	if (!storage || protocol != IPPROTO_TCP)
		return 0;
	task = bpf_get_current_task_btf();
	ours = BPF_CORE_READ(task, nsproxy, net_ns);
	if (ours && ours == theirs && !(task->flags & PF_KTHREAD))
		return 0;
	slim_count(SLIM_DENIED_CHOWN);
	return -EPERM;
}

/* An address as two numbers in reading order; IPv4 in its mapped form. */
static __always_inline void
slim_address(__u64 out[2], int family, __be32 v4, const struct in6_addr *v6)
{
	__u32 words[4] = { 0, 0, bpf_htonl(0xffff), v4 };

	if (family != AF_INET)
		bpf_core_read(words, sizeof(words), &v6->in6_u.u6_addr32);
	out[0] = (__u64)bpf_ntohl(words[0]) << 32 | bpf_ntohl(words[1]);
	out[1] = (__u64)bpf_ntohl(words[2]) << 32 | bpf_ntohl(words[3]);
}

/*
 * One line a tag: cookie, state, family, port here, port there, address here,
 * address there. That is what SOCK_DESTROY asks for.
 */
static __always_inline void
slim_print(struct seq_file *seq, struct sock *sk, const struct slim_tag *tag)
{
	__u64 here[2], there[2], cookie = bpf_get_socket_cookie(sk);
	unsigned short family = sk->__sk_common.skc_family;
	__u16 port = sk->__sk_common.skc_num, peer = bpf_ntohs(sk->__sk_common.skc_dport);

	slim_address(here, family, sk->__sk_common.skc_rcv_saddr,
		     &sk->__sk_common.skc_v6_rcv_saddr);
	slim_address(there, family, sk->__sk_common.skc_daddr, &sk->__sk_common.skc_v6_daddr);
	BPF_SEQ_PRINTF(seq, "%llu %u %u %u %u %016llx%016llx %016llx%016llx\n", cookie, tag->state,
		       family, port, peer, here[0], here[1], there[0], there[1]);
}

/* Reading it lists all tags. */
SEC("iter/bpf_sk_storage_map")
int slim_list(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct slim_tag *tag = ctx->value;
	struct sock *sk = ctx->sk;

	if (sk && tag)
		slim_print(ctx->meta->seq, sk, tag);
	return 0;
}

/*
 * Reading it revokes every tag whose socket's cookie is in `revoke`, and lists
 * those, the already revoked ones too, so that it may be read again.
 */
SEC("iter/bpf_sk_storage_map")
int slim_mark(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct slim_tag *tag = ctx->value;
	struct sock *sk = ctx->sk;
	__u64 cookie;

	if (!sk || !tag)
		return 0;
	cookie = bpf_get_socket_cookie(sk);
	if (!bpf_map_lookup_elem(&revoke, &cookie))
		return 0;
	if (tag->state != SLIM_REVOKED) {
		tag->state = SLIM_REVOKED;
		slim_count(SLIM_REVOKED_TOTAL);
	}
	slim_print(ctx->meta->seq, sk, tag);
	return 0;
}

/* Reading it lists who holds tagged sockets: cookie, state, process, descriptor. */
SEC("iter/task_file")
int slim_holders(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct sock *sk = slim_sock_of(ctx->file);
	struct slim_tag *tag = slim_tag_of(sk);

	if (task && tag)
		BPF_SEQ_PRINTF(ctx->meta->seq, "%llu %u %d %u\n", tag->cookie, tag->state,
			       task->tgid, ctx->fd);
	return 0;
}
