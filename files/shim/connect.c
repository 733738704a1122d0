/* SPDX-License-Identifier: Apache-2.0 */
/*
 * connect(): warm with a lease (one message, a host connection at once), cold
 * without (the overlay's own connect, a host connection prepared beside it).
 */
#include "slim.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

SLIM_DECLARE_REAL(int, connect, int, const struct sockaddr *, socklen_t);

#define WARM_BOUND_US 1000000 /* a host that does not answer costs this, then the overlay */
#define BLOCKING_REPLY_US 1000000 /* a busy worker is worth waiting for; no event loop waits */

/* A connected descriptor of ours is told to disconnect: give it a fresh socket. */
static int disconnect(int fd, struct slim_slot *slot)
{
	int fresh = (int)syscall(SYS_socket, slot->family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
	int flags = sys_fcntl(fd, F_GETFL, 0), hidden = slot->hidden;
	uint64_t was = slot->cookie;

	if (fresh < 0)
		return -1;
	sys_fcntl(fresh, F_SETFL, flags);
	slot->state = SLIM_FRESH;
	slot->cookie = 0;
	slot->hidden = -1;
	slot->told_set = 0;
	if (slim_replace(fd, fresh, slot, was) < 0) {
		errno = EBADF;
		return -1;
	}
	slim_put(fd, slot);
	slim_unhide(hidden); /* the overlay's socket that kept the port */
	return 0;
}

/* The second connect() on a descriptor whose first is under way. */
static int again(int fd, const struct sockaddr *addr, socklen_t len)
{
	bool blocking = !(sys_fcntl(fd, F_GETFL, 0) & O_NONBLOCK);
	struct slim_slot slot;

	for (;;) {
		enum slim_outcome outcome = slim_resolve(fd, slim_now_us() + slim_bound_us(blocking), false);

		if (outcome == SLIM_DONE && slim_get(fd, &slot) && slot.state == SLIM_CONNECTED)
			return 0; /* connect(2): the call that finds it done succeeds */
		if (outcome != SLIM_NOT_YET)
			return REAL(connect)(fd, addr, len);
		if (!slim_get(fd, &slot) || slot.state != SLIM_PENDING_WARM)
			break;
		if (!blocking) {
			errno = EALREADY;
			return -1;
		}
		sys_poll(fd, POLLOUT, WARM_BOUND_US);
	}
	/* Cold and not there yet: the overlay's own answer (EALREADY, or it waits). */
	if (REAL(connect)(fd, addr, len) < 0)
		return -1;
	slim_resolve(fd, slim_now_us() + slim_bound_us(blocking), false);
	return 0;
}

static bool wanted(int fd, const uint8_t peer[16], int family, const struct slim_slot *slot)
{
	int protocol = 0, domain = 0;
	socklen_t len = sizeof(protocol);

	if (slim_is_loopback(peer) || slim_is_any(peer) || !slim_covers(peer))
		return false;
	if (slim_stays(slot->options))
		return false;
	/* A socket that was here before a fork may be somebody else's, too. */
	if (slot->state == SLIM_FRESH && slot->generation != atomic_load(&slim_generation))
		return false;
	if (sys_getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &len) < 0 || protocol != IPPROTO_TCP)
		return false;
	if (slot->state == SLIM_FRESH)
		return slot->family == family;
	len = sizeof(domain);
	return sys_getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == family;
}

/* The port that the application chose: 0 none; false if it chose another address. */
static bool chosen_port(int fd, const struct slim_slot *slot, uint16_t *port)
{
	struct sockaddr_storage name;
	socklen_t len = sizeof(name);
	uint8_t addr[16];

	*port = 0;
	if (slot->state == SLIM_FRESH && !(slot->flags & SLIM_S_BOUND))
		return true;
	if (sys_getsockname(fd, (struct sockaddr *)&name, &len) < 0 ||
	    !slim_from_sockaddr((struct sockaddr *)&name, len, addr, port))
		return false;
	return slim_is_any(addr) || memcmp(addr, slim_vip(), 16) == 0;
}

static int warm(int fd, int host, struct slim_slot *slot, const struct slim_msg *reply, bool nonblock,
		const struct sockaddr *addr, socklen_t len, uint64_t was)
{
	slot->cookie = reply->cookie;
	memcpy(slot->local, reply->local, 16);
	slot->lport = reply->lport;
	if (!nonblock) {
		int ready = sys_poll(host, POLLOUT, WARM_BOUND_US);

		if (ready <= 0 || ready & (POLLERR | POLLHUP)) {
			struct slim_msg msg;

			sys_close(host);
			slim_message(&msg, SLIM_CANCEL);
			msg.cookie = reply->cookie;
			msg.error = ready > 0 ? ECONNREFUSED : ETIMEDOUT;
			slim_tell(&msg);
			return REAL(connect)(fd, addr, len);
		}
		if (slot->options)
			slim_carry_options(fd, host, slot, slot->options);
		slot->state = SLIM_CONNECTED;
		slot->hidden = slim_keep_port(fd, slot);
		if (slim_replace(fd, host, slot, was) < 0)
			goto gone;
		slim_put(fd, slot);
		return 0;
	}
	slot->hidden = slim_hide(fd);
	if (slot->hidden < 0) {
		sys_close(host);
		return REAL(connect)(fd, addr, len);
	}
	if (slot->options)
		slim_carry_options(fd, host, slot, slot->options);
	slot->state = SLIM_PENDING_WARM;
	if (slim_replace(fd, host, slot, was) < 0)
		goto gone;
	slim_put(fd, slot);
	if (!slim_pending_add(fd)) { /* looked at by SO_ERROR and its kin only */
		sys_poll(fd, POLLOUT, slim_bound_us(false));
		slim_resolve(fd, 0, false);
	}
	errno = EINPROGRESS;
	return -1;
gone: /* closed by another thread meanwhile */
	slim_unhide(slot->hidden);
	errno = EBADF;
	return -1;
}

static int cold(int fd, struct slim_slot *slot, uint64_t attempt, int flags, const struct sockaddr *addr,
		socklen_t len)
{
	bool nonblock = flags & O_NONBLOCK;
	struct sockaddr_storage name;
	socklen_t name_len = sizeof(name);
	struct slim_msg msg;
	int result, error;

	/* Start without waiting, so that the worker learns our port in time. */
	if (!nonblock)
		sys_fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	result = REAL(connect)(fd, addr, len);
	error = errno;
	if (!nonblock)
		sys_fcntl(fd, F_SETFL, flags);
	if (result < 0 && error != EINPROGRESS) {
		slim_message(&msg, SLIM_CANCEL);
		msg.value = attempt;
		slim_tell(&msg);
		errno = error;
		return -1;
	}
	slot->attempt = attempt;
	slot->hidden = -1;
	slot->cookie = slim_cookie(fd);
	slot->state = SLIM_PENDING_COLD;
	slim_message(&msg, SLIM_BEGIN);
	msg.value = attempt;
	if (sys_getsockname(fd, (struct sockaddr *)&name, &name_len) == 0) {
		uint8_t local[16];

		slim_from_sockaddr((struct sockaddr *)&name, name_len, local, &msg.lport);
	}
	slim_tell(&msg);
	slim_put(fd, slot);
	slim_pending_add(fd); /* a full list: looked at by SO_ERROR and its kin only */
	if (nonblock) {
		if (result == 0)
			slim_resolve(fd, slim_now_us() + slim_bound_us(false), false);
		errno = error;
		return result;
	}
	/*
	 * The overlay's own waiting, with its own time-outs and signals. A peer that
	 * accepted and has reset already is left to the first recv: a connect that
	 * had waited all along would have seen the handshake, not the reset.
	 */
	if (result < 0 && !slim_reset_after_handshake(fd) && REAL(connect)(fd, addr, len) < 0) {
		error = errno;
		/* SO_SNDTIMEO is over. The kernel says so to a second connect, which ours is. */
		if (error == EALREADY)
			error = EINPROGRESS;
		if (error != EINTR && error != EINPROGRESS)
			slim_resolve(fd, 0, false);
		errno = error;
		return -1;
	}
	slim_resolve(fd, slim_now_us() + slim_bound_us(true), false);
	return 0;
}

int slim_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	static const uint8_t answers[SLIM_ANSWERS] = { SLIM_WARM, SLIM_COLD, SLIM_PLAIN, SLIM_REFUSED };
	struct slim_slot slot;
	struct slim_msg ask, reply;
	uint8_t peer[16];
	uint16_t port, own_port;
	int flags, host = -1;
	bool nonblock;

	if (!slim_get(fd, &slot)) {
		memset(&slot, 0, sizeof(slot));
	} else if (slot.state == SLIM_PENDING_COLD || slot.state == SLIM_PENDING_WARM) {
		return again(fd, addr, len);
	} else if (slot.state == SLIM_RESOLVING) {
		errno = EALREADY;
		return -1;
	} else if (slot.state == SLIM_CONNECTED) {
		if (addr && len >= sizeof(sa_family_t) && addr->sa_family == AF_UNSPEC)
			return disconnect(fd, &slot);
		errno = EISCONN;
		return -1;
	} else if (slot.state == SLIM_LISTENER) {
		return sys_connect(slot.hidden, addr, len);
	}
	if (!slim_from_sockaddr(addr, len, peer, &port) || !port || slim_foreign_process() ||
	    !wanted(fd, peer, addr->sa_family, &slot) || !chosen_port(fd, &slot, &own_port))
		return REAL(connect)(fd, addr, len);
	flags = sys_fcntl(fd, F_GETFL, 0);
	nonblock = flags & O_NONBLOCK;
	slim_message(&ask, SLIM_CONNECT);
	ask.flags = (nonblock ? SLIM_F_NONBLOCK : 0) | (own_port ? SLIM_F_BOUND : 0);
	memcpy(ask.peer, peer, 16);
	ask.pport = port;
	ask.lport = own_port;
	ask.family = addr->sa_family;
	ask.cookie = slim_cookie(fd);
	ask.value = (uint64_t)(slim_now_us() + (nonblock ? slim_reply_us() : BLOCKING_REPLY_US));
	if (slim_ask(&ask, NULL, 0, answers, &reply, &host,
		     nonblock ? slim_reply_us() : BLOCKING_REPLY_US) < 0) {
		slim_uncounted();
		return REAL(connect)(fd, addr, len);
	}
	slot.family = addr->sa_family;
	slot.generation = atomic_load(&slim_generation);
	memcpy(slot.peer, peer, 16);
	slot.pport = port;
	if (reply.type == SLIM_WARM && host >= 0 && slim_cookie(host) == reply.cookie)
		return warm(fd, host, &slot, &reply, nonblock, addr, len, ask.cookie);
	if (host >= 0)
		sys_close(host);
	if (reply.type == SLIM_COLD)
		return cold(fd, &slot, reply.value, flags, addr, len);
	if (reply.type == SLIM_REFUSED) { /* the policy's word: as if a filter had sent a reset */
		errno = ECONNREFUSED;
		return -1;
	}
	return REAL(connect)(fd, addr, len);
}

SLIM_EXPORT int connect(int fd, SLIM_CONST_ADDR addr, socklen_t len)
{
	return slim_connect(fd, SLIM_ADDR_OF(addr), len);
}
