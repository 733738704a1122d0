// SPDX-License-Identifier: GPL-2.0-only
/*
 * The private proto_ops of tagged sockets.
 *
 * Two sets per address family, both copies of what the family has. "live"
 * checks the calls that the allow-list judges and passes on; what is not named
 * below (poll, release, shutdown, read_sock, peek_len ...) is the kernel's own
 * function, so that it costs nothing. "revoked" answers ECONNABORTED for ever.
 *
 * Revocation replaces sock->ops while calls may be inside "live" ones. These
 * end as tcp_abort() lets them end: one reader gets the error, the others see
 * the end of the stream, which would look like the end of the data. So every
 * live call that can sleep looks at sock->ops once more on its way out.
 *
 * A call that had fetched the old operations but not begun reaches the aborted
 * socket through "live", and is answered on its way out just the same.
 */
#include <linux/module.h>
#include <linux/net.h>
#include <linux/nsproxy.h>
#include <linux/poll.h>
#include <linux/sched.h>
#include <linux/splice.h>
#include <net/ipv6.h>
#include <net/net_namespace.h>
#include <net/sock.h>
#include <net/tcp.h>

#include "allow.h"
#include "slim.h"

struct slim_family slim_families[2] __ro_after_init;

/* The task that runs the self-test: never exempt. */
struct task_struct *slim_tester;

/*
 * Is the caller a stranger to the socket's own network namespace? The router
 * is not: it made the socket. A dying task has no namespaces left. A kernel
 * thread lives in the initial one whoever it works for (io_uring's fallback
 * work, KCM), so that it is one; our own workers make no call that is judged.
 */
bool slim_is_outside(const struct sock *sk)
{
	const struct nsproxy *ns = current->nsproxy;

	if (unlikely(READ_ONCE(slim_tester) == current) || current->flags & PF_KTHREAD)
		return true;
	return !ns || !net_eq(ns->net_ns, sock_net(sk));
}

int slim_deny(enum slim_call call)
{
	atomic64_inc(&slim_stats.denied[call]);
	return -EPERM;
}

static const struct proto_ops *slim_base(const struct socket *sock)
{
	return slim_family(sock->sk)->base;
}

/* What a call that was under way when the socket was revoked answers. */
static ssize_t slim_end(const struct socket *sock, ssize_t result)
{
	if (result <= 0 && unlikely(slim_is_revoked(sock)))
		return -ECONNABORTED;
	return result;
}

/* A sender's: what the kernel took of it has been thrown away with the rest. */
static ssize_t slim_end_send(const struct socket *sock, ssize_t result)
{
	return unlikely(slim_is_revoked(sock)) ? -ECONNABORTED : result;
}

static int slim_bind(struct socket *sock, SLIM_SOCKADDR *address, int length)
{
	if (slim_is_outside(sock->sk))
		return slim_deny(SLIM_CALL_BIND);
	return slim_base(sock)->bind(sock, address, length);
}

static int slim_connect(struct socket *sock, SLIM_SOCKADDR *address,
			int length, int flags)
{
	if (slim_is_outside(sock->sk))
		return slim_deny(SLIM_CALL_CONNECT);
	return slim_end(sock, slim_base(sock)->connect(sock, address, length, flags));
}

/* Nobody's: the children of a listener would copy sk_destruct. */
static int slim_listen(struct socket *sock, int backlog)
{
	return slim_deny(SLIM_CALL_LISTEN);
}

static int slim_accept(struct socket *sock, struct socket *child, SLIM_ACCEPT_ARGS)
{
	return slim_deny(SLIM_CALL_ACCEPT);
}

static int slim_getname(struct socket *sock, struct sockaddr *address, int peer)
{
	if (slim_is_outside(sock->sk))
		return slim_deny(SLIM_CALL_GETNAME);
	return slim_base(sock)->getname(sock, address, peer);
}

/* hooks.c has judged before; this holds even if ftrace is killed. */
static int slim_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg)
{
	if (!slim_allow_ioctl(cmd) && slim_is_outside(sock->sk))
		return slim_deny(SLIM_CALL_IOCTL);
	return slim_base(sock)->ioctl(sock, cmd, arg);
}

#ifdef CONFIG_COMPAT
static int slim_compat_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg)
{
	if (!slim_allow_ioctl(cmd) && slim_is_outside(sock->sk))
		return slim_deny(SLIM_CALL_IOCTL);
	return slim_base(sock)->compat_ioctl(sock, cmd, arg);
}
#endif

static int slim_setsockopt(struct socket *sock, int level, int name,
			   sockptr_t value, unsigned int length)
{
	if (!slim_allow_set(level, name) && slim_is_outside(sock->sk))
		return slim_deny(SLIM_CALL_SETSOCKOPT);
	return slim_base(sock)->setsockopt(sock, level, name, value, length);
}

static int slim_getsockopt(struct socket *sock, int level, int name,
			   char __user *value, int __user *length)
{
	if (!slim_allow_get(level, name) && slim_is_outside(sock->sk))
		return slim_deny(SLIM_CALL_GETSOCKOPT);
	return slim_base(sock)->getsockopt(sock, level, name, value, length);
}

static int slim_sendmsg(struct socket *sock, struct msghdr *msg, size_t size)
{
	if (unlikely(!slim_allow_send(msg->msg_flags, !!msg->msg_name, msg->msg_controllen)) &&
	    slim_is_outside(sock->sk))
		return slim_deny(SLIM_CALL_SENDMSG);
	return slim_end_send(sock, slim_base(sock)->sendmsg(sock, msg, size));
}

static int slim_recvmsg(struct socket *sock, struct msghdr *msg, size_t size, int flags)
{
	if (unlikely(!slim_allow_recv(flags)) && slim_is_outside(sock->sk))
		return slim_deny(SLIM_CALL_RECVMSG);
	return slim_end(sock, slim_base(sock)->recvmsg(sock, msg, size, flags));
}

static ssize_t slim_splice_read(struct socket *sock, loff_t *at,
				struct pipe_inode_info *pipe, size_t length,
				unsigned int flags)
{
	return slim_end(sock, slim_base(sock)->splice_read(sock, at, pipe, length, flags));
}

#ifdef SLIM_HAS_SENDPAGE
static ssize_t slim_sendpage(struct socket *sock, struct page *page, int offset,
			     size_t size, int flags)
{
	return slim_end_send(sock,
			     slim_base(sock)->sendpage(sock, page, offset, size, flags));
}
#endif

/* Pages of the receive queue in a process's memory: not ours to follow. */
static int slim_mmap(struct file *file, struct socket *sock, struct vm_area_struct *area)
{
	if (slim_is_outside(sock->sk))
		return slim_deny(SLIM_CALL_MMAP);
	return slim_base(sock)->mmap(file, sock, area);
}

/* The abort may be waiting for the lock yet: the peer sees a reset, no clean end. */
static int slim_revoked_release(struct socket *sock)
{
	struct sock *sk = sock->sk;

	lock_sock(sk);
	sock_set_flag(sk, SOCK_LINGER);
	sk->sk_lingertime = 0;
	release_sock(sk);
	return slim_base(sock)->release(sock);
}

static int slim_revoked_bind(struct socket *sock, SLIM_SOCKADDR *address, int length)
{
	return -ECONNABORTED;
}

static int slim_revoked_connect(struct socket *sock, SLIM_SOCKADDR *address,
				int length, int flags)
{
	return -ECONNABORTED;
}

static int slim_revoked_listen(struct socket *sock, int backlog)
{
	return -ECONNABORTED;
}

static int slim_revoked_accept(struct socket *sock, struct socket *child, SLIM_ACCEPT_ARGS)
{
	return -ECONNABORTED;
}

static __poll_t slim_revoked_poll(struct file *file, struct socket *sock,
				  struct poll_table_struct *wait)
{
	slim_watched_seen(file);
	/* As after a reset; no waiting, it will never be otherwise. */
	return EPOLLERR | EPOLLHUP | EPOLLRDHUP | EPOLLIN | EPOLLRDNORM |
	       EPOLLOUT | EPOLLWRNORM;
}

static int slim_revoked_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg)
{
	return -ECONNABORTED;
}

static int slim_revoked_shutdown(struct socket *sock, int how)
{
	return -ECONNABORTED;
}

static int slim_revoked_setsockopt(struct socket *sock, int level, int name,
				   sockptr_t value, unsigned int length)
{
	return -ECONNABORTED;
}

/* The few facts that a dead socket still has are as harmless as before. */

static int slim_revoked_sendmsg(struct socket *sock, struct msghdr *msg, size_t size)
{
	return -ECONNABORTED;
}

static int slim_revoked_recvmsg(struct socket *sock, struct msghdr *msg, size_t size,
				int flags)
{
	return -ECONNABORTED;
}

static int slim_revoked_mmap(struct file *file, struct socket *sock,
			     struct vm_area_struct *area)
{
	return -ECONNABORTED;
}

static ssize_t slim_revoked_splice_read(struct socket *sock, loff_t *at,
					struct pipe_inode_info *pipe, size_t length,
					unsigned int flags)
{
	return -ECONNABORTED;
}

#ifdef SLIM_HAS_SENDPAGE
static ssize_t slim_revoked_sendpage(struct socket *sock, struct page *page, int offset,
				     size_t size, int flags)
{
	return -ECONNABORTED;
}
#endif

#ifdef SLIM_HAS_SENDPAGE_LOCKED
static int slim_revoked_sendpage_locked(struct sock *sk, struct page *page, int offset,
					size_t size, int flags)
{
	return -ECONNABORTED;
}
#endif

/* For users inside the kernel that sit on the socket: KCM, strparser. */
static int slim_revoked_sendmsg_locked(struct sock *sk, struct msghdr *msg, size_t size)
{
	return -ECONNABORTED;
}

static int slim_revoked_read_sock(struct sock *sk, read_descriptor_t *desc,
				  sk_read_actor_t actor)
{
	return -ECONNABORTED;
}

#ifdef SLIM_HAS_READ_SKB
static int slim_revoked_read_skb(struct sock *sk, skb_read_actor_t actor)
{
	return -ECONNABORTED;
}
#endif

static int slim_revoked_set_rcvlowat(struct sock *sk, int value)
{
	return -ECONNABORTED;
}

static void __init slim_ops_live(struct proto_ops *ops)
{
	ops->owner = THIS_MODULE;
	ops->bind = slim_bind;
	ops->connect = slim_connect;
	ops->listen = slim_listen;
	ops->accept = slim_accept;
	ops->getname = slim_getname;
	ops->ioctl = slim_ioctl;
#ifdef CONFIG_COMPAT
	if (ops->compat_ioctl)
		ops->compat_ioctl = slim_compat_ioctl;
#endif
	ops->setsockopt = slim_setsockopt;
	ops->getsockopt = slim_getsockopt;
	ops->sendmsg = slim_sendmsg;
	ops->recvmsg = slim_recvmsg;
	if (ops->splice_read)
		ops->splice_read = slim_splice_read;
#ifdef SLIM_HAS_SENDPAGE
	if (ops->sendpage)
		ops->sendpage = slim_sendpage;
#endif
	if (ops->mmap)
		ops->mmap = slim_mmap;
}

static void __init slim_ops_revoked(struct proto_ops *ops)
{
	/* From "live": getname and getsockopt judge. */
	slim_ops_live(ops);
	ops->release = slim_revoked_release;
	ops->bind = slim_revoked_bind;
	ops->connect = slim_revoked_connect;
	ops->listen = slim_revoked_listen;
	ops->accept = slim_revoked_accept;
	ops->poll = slim_revoked_poll;
	ops->ioctl = slim_revoked_ioctl;
#ifdef CONFIG_COMPAT
	ops->compat_ioctl = slim_revoked_ioctl;
#endif
	ops->shutdown = slim_revoked_shutdown;
	ops->setsockopt = slim_revoked_setsockopt;
	ops->sendmsg = slim_revoked_sendmsg;
	ops->recvmsg = slim_revoked_recvmsg;
	ops->mmap = slim_revoked_mmap;
	ops->splice_read = slim_revoked_splice_read;
#ifdef SLIM_HAS_SENDPAGE
	ops->sendpage = slim_revoked_sendpage;
#endif
#ifdef SLIM_HAS_SENDPAGE_LOCKED
	ops->sendpage_locked = slim_revoked_sendpage_locked;
#endif
	ops->sendmsg_locked = slim_revoked_sendmsg_locked;
	ops->read_sock = slim_revoked_read_sock;
#ifdef SLIM_HAS_READ_SKB
	ops->read_skb = slim_revoked_read_skb;
#endif
	ops->set_rcvlowat = slim_revoked_set_rcvlowat;
}

/* The kernel's own operations, from a socket that it makes for us. */
static int __init slim_family_init(struct slim_family *family, int number)
{
	struct socket *sock;
	int error;

	error = sock_create_kern(&init_net, number, SOCK_STREAM, IPPROTO_TCP, &sock);
	if (error)
		return error;
	family->base = sock->ops;
	__module_get(family->base->owner);
	sock_release(sock);

	family->live = *family->base;
	slim_ops_live(&family->live);
	family->revoked = *family->base;
	slim_ops_revoked(&family->revoked);
	return 0;
}

int __init slim_ops_init(void)
{
	int error;

	error = slim_family_init(&slim_families[0], AF_INET);
	if (error) {
		pr_err("cannot make an AF_INET socket (%d); not loaded\n", error);
		return error;
	}
	error = slim_family_init(&slim_families[1], AF_INET6);
	if (error)
		pr_notice("no AF_INET6 here (%d): only AF_INET sockets can be tagged\n", error);
	return 0;
}

void slim_ops_exit(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(slim_families); i++)
		if (slim_families[i].base)
			module_put(slim_families[i].base->owner);
}

void slim_ops_set(struct socket *sock, enum slim_state state)
{
	const struct slim_family *family = slim_family(sock->sk);

	WRITE_ONCE(sock->ops, state == SLIM_LIVE ? &family->live : &family->revoked);
}
