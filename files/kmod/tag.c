// SPDX-License-Identifier: GPL-2.0-only
/*
 * The record of a tagged socket.
 *
 * The tag belongs to struct sock, so that dup, fork, exec, SCM_RIGHTS,
 * pidfd_getfd and io_uring need nothing of ours: they carry the same socket.
 * That sk_destruct is slim_destruct() says "tagged" in one comparison, and
 * brings us the end of the socket, whenever that is. The record with the rest
 * is found by the socket's cookie, which the control file names and the socket
 * itself knows, so that one table serves both questions.
 *
 * References to the module: a tag has one until its record is freed, and the
 * struct socket has one through proto_ops.owner until it is released. The
 * kernel drops the latter after ->release has returned.
 */
#include <linux/file.h>
#include <linux/hash.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <net/inet_common.h>
#include <net/tcp.h>
#include <net/tcp_states.h>

#include "slim.h"

/*
 * 100,000 connections make chains of six. One lock: it is held for a few
 * instructions at the birth and the end of a connection, never on its data.
 */
static struct hlist_head slim_table[SLIM_BUCKETS];
static DEFINE_SPINLOCK(slim_table_lock);

static struct kmem_cache *slim_tags;

int __init slim_tags_init(void)
{
	slim_tags = slim_cache("slim_tag", sizeof(struct slim_tag), SLAB_ACCOUNT);
	return slim_tags ? 0 : -ENOMEM;
}

/* After slim_settle(): the last record has been freed. */
void slim_tags_exit(void)
{
	kmem_cache_destroy(slim_tags);
}

static struct hlist_head *slim_bucket(u64 cookie)
{
	return &slim_table[hash_64(cookie, ilog2(SLIM_BUCKETS))];
}

/* Under the table's lock or RCU. */
static struct slim_tag *slim_tag_lookup(u64 cookie)
{
	struct slim_tag *tag;

	hlist_for_each_entry_rcu(tag, slim_bucket(cookie), node,
				 lockdep_is_held(&slim_table_lock))
		if (tag->cookie == cookie)
			return tag;
	return NULL;
}

/*
 * The record of a tagged socket. The caller keeps it: by a reference to the
 * socket and the lock under which tags come and go, or by RCU.
 */
struct slim_tag *slim_tag_find(const struct sock *sk)
{
	struct slim_tag *tag;

	rcu_read_lock();
	tag = slim_tag_lookup(atomic64_read(&sk->sk_cookie));
	rcu_read_unlock();
	return tag && tag->sk == sk ? tag : NULL;
}

static void slim_tag_free(struct rcu_head *rcu)
{
	kmem_cache_free(slim_tags, container_of(rcu, struct slim_tag, rcu));
	/* slim_exit() waits for callbacks that are still running. */
	module_put(THIS_MODULE);
}

static void slim_tag_drop(struct slim_tag *tag)
{
	spin_lock_bh(&slim_table_lock);
	hlist_del_rcu(&tag->node);
	spin_unlock_bh(&slim_table_lock);
	atomic64_dec(&slim_stats.tags);
	call_rcu(&tag->rcu, slim_tag_free);
}

/*
 * The last reference to the socket is gone. Any context, any CPU.
 * slim_exit() waits for a task that was preempted after slim_tag_drop().
 */
void slim_destruct(struct sock *sk)
{
	struct slim_tag *tag = slim_tag_find(sk);

	/*
	 * Only a clone of a tagged socket, which is a child of a listener, has
	 * no record of its own; slim_listen() does not let one come into being.
	 */
	if (WARN_ON_ONCE(!tag)) {
		inet_sock_destruct(sk);
		return;
	}
	tag->destruct(sk);
	slim_tag_drop(tag);
}

static int slim_tag_check(const struct socket *sock)
{
	const struct sock *sk = sock->sk;

	if (sk->sk_type != SOCK_STREAM || sk->sk_protocol != IPPROTO_TCP ||
	    (sk->sk_family != AF_INET && sk->sk_family != AF_INET6))
		return -EPROTOTYPE;
	/* Somebody else's operations are in place: kTLS, SMC, MPTCP. */
	if (!slim_family(sk)->base ||
	    READ_ONCE(sock->ops) != slim_family(sk)->base)
		return -EPROTOTYPE;
	if (sk->sk_state == TCP_LISTEN)
		return -EINVAL;
	return 0;
}

/*
 * Whoever wants to sit on a socket (KCM, sockmap, strparser) claims sk_user_data, and
 * gives up where it is taken. Kernels without SK_USER_DATA_PSOCK take every claim for
 * a sockmap's, so that it is left alone there.
 */
static int slim_claim(struct sock *sk, struct slim_tag *tag)
{
	int error = 0;

#ifdef SK_USER_DATA_PSOCK
	write_lock_bh(&sk->sk_callback_lock);
	if (sk->sk_user_data)
		error = -EPROTOTYPE;
	else
		__rcu_assign_sk_user_data_with_flags(sk, tag, SK_USER_DATA_NOCOPY);
	write_unlock_bh(&sk->sk_callback_lock);
#endif
	return error;
}

static void slim_unclaim(struct sock *sk)
{
#ifdef SK_USER_DATA_PSOCK
	write_lock_bh(&sk->sk_callback_lock);
	rcu_assign_sk_user_data(sk, NULL);
	write_unlock_bh(&sk->sk_callback_lock);
#endif
}

/*
 * Tag the socket. The router does it while nobody else has the socket: a call
 * that another thread of the router's has begun before ends under the kernel's
 * own operations.
 */
int slim_tag(struct socket *sock, u64 cookie)
{
	struct sock *sk = sock->sk;
	struct slim_tag *tag;
	int error;

	tag = kmem_cache_alloc(slim_tags, GFP_KERNEL_ACCOUNT);
	if (!tag)
		return -ENOMEM;
	*tag = (struct slim_tag){};

	lock_sock(sk);
	if (slim_is_tagged(sk)) {
		error = slim_is_revoked(sock) ? -EALREADY : 0;
		if (atomic64_read(&sk->sk_cookie) != cookie)
			error = -ESTALE;
		goto out_unlock;
	}
	error = slim_tag_check(sock);
	if (error)
		goto out_unlock;
	if (atomic64_read(&sk->sk_cookie) != cookie) {
		error = -ESTALE;
		goto out_unlock;
	}
	error = slim_claim(sk, tag);
	if (error)
		goto out_unlock;
	/* Fails once rmmod has begun; the second cannot, after the first. */
	if (!try_module_get(THIS_MODULE)) {
		slim_unclaim(sk);
		error = -ESHUTDOWN;
		goto out_unlock;
	}
	__module_get(THIS_MODULE);

	INIT_DELAYED_WORK(&tag->abort, slim_abort_work);
	INIT_LIST_HEAD(&tag->batch);
	tag->sk = sk;
	tag->cookie = cookie;
	tag->born = ktime_get_ns();
	tag->state = SLIM_LIVE;
	tag->destruct = sk->sk_destruct;

	spin_lock_bh(&slim_table_lock);
	hlist_add_head_rcu(&tag->node, slim_bucket(cookie));
	spin_unlock_bh(&slim_table_lock);
	/* Pairs with nothing that could be late: we hold a file of the socket. */
	smp_store_release(&sk->sk_destruct, slim_destruct);
	slim_ops_set(sock, SLIM_LIVE);
	release_sock(sk);

	module_put(slim_family(sk)->base->owner);
	atomic64_inc(&slim_stats.tags);
	atomic64_inc(&slim_stats.tagged);
	return 0;

out_unlock:
	release_sock(sk);
	kmem_cache_free(slim_tags, tag);
	return error;
}

/*
 * Take a tag back. Only while the caller's descriptor is the one reference to
 * the file beside our own: then nobody is inside our operations and nobody
 * else ever had the socket.
 */
int slim_untag(struct socket *sock, u64 cookie)
{
	struct sock *sk = sock->sk;
	struct slim_tag *tag;
	int error = 0;

	lock_sock(sk);
	tag = slim_is_tagged(sk) ? slim_tag_find(sk) : NULL;
	if (!tag)
		error = -ENOENT;
	else if (tag->cookie != cookie)
		error = -ESTALE;
	else if (slim_is_revoked(sock))
		error = -EALREADY;
	else if (sock->file && file_count(sock->file) > 2)
		error = -EBUSY;
	if (error) {
		release_sock(sk);
		return error;
	}
	spin_lock_bh(&slim_table_lock);
	/* A REVOKE on another CPU may have come first. */
	if (tag->state == SLIM_LIVE) {
		hlist_del_rcu(&tag->node);
		slim_unclaim(sk);
		WRITE_ONCE(sk->sk_destruct, tag->destruct);
		WRITE_ONCE(sock->ops, slim_family(sk)->base);
	} else {
		error = -EALREADY;
	}
	spin_unlock_bh(&slim_table_lock);
	release_sock(sk);
	if (error)
		return error;

	__module_get(slim_family(sk)->base->owner);
	atomic64_dec(&slim_stats.tags);
	atomic64_inc(&slim_stats.untagged);
	call_rcu(&tag->rcu, slim_tag_free);
	module_put(THIS_MODULE);
	return 0;
}

/*
 * Mark a tag as revoked and put the operations of a revoked socket in place:
 * from here on no call on it does anything. Returns the tag with a reference
 * to its socket (which keeps the tag), or NULL if there is none by that cookie.
 */
struct slim_tag *slim_tag_revoke(u64 cookie, bool *fresh)
{
	struct slim_tag *tag;
	struct sock *sk;

	*fresh = false;
	spin_lock_bh(&slim_table_lock);
	tag = slim_tag_lookup(cookie);
	/* The destructor waits for our lock before the memory goes. */
	if (!tag || !refcount_inc_not_zero(&tag->sk->sk_refcnt)) {
		spin_unlock_bh(&slim_table_lock);
		return NULL;
	}
	sk = tag->sk;
	if (tag->state == SLIM_LIVE) {
		tag->state = SLIM_REVOKED;
		*fresh = true;
		/* sock_orphan() takes sk_socket away under this lock. */
		read_lock(&sk->sk_callback_lock);
		if (sk->sk_socket)
			slim_ops_set(sk->sk_socket, SLIM_REVOKED);
		read_unlock(&sk->sk_callback_lock);
	}
	spin_unlock_bh(&slim_table_lock);
	return tag;
}

/* For readers: each record of a bucket, under RCU. */
void slim_tags_each(unsigned int bucket, void (*each)(struct slim_tag *tag, void *data),
		    void *data)
{
	struct slim_tag *tag;

	rcu_read_lock();
	hlist_for_each_entry_rcu(tag, &slim_table[bucket], node)
		each(tag, data);
	rcu_read_unlock();
}

static void slim_count_held(struct slim_tag *tag, void *data)
{
	/* TCP's sockets are typesafe by RCU, and we are under it. */
	if (READ_ONCE(tag->state) == SLIM_REVOKED && READ_ONCE(tag->sk->sk_socket) &&
	    !slim_watched_only(tag))
		(*(unsigned int *)data)++;
}

/* Revoked sockets that somebody still holds a file of. */
unsigned int slim_tags_held(void)
{
	unsigned int bucket, held = 0;

	for (bucket = 0; bucket < SLIM_BUCKETS; bucket++)
		if (!hlist_empty(&slim_table[bucket]))
			slim_tags_each(bucket, slim_count_held, &held);
	return held;
}
