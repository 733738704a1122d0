/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connects that are under way. While there are any, poll, select and epoll_wait
 * are looked at after they return (poll.c, select.c, epoll.c); otherwise they
 * cost one load.
 */
#include "slim.h"

#include <fcntl.h>
#include <netinet/tcp.h>

_Atomic int slim_pending;
static _Atomic int list[SLIM_PENDING_MAX]; /* fd + 1, 0 is empty */
static _Atomic int top;

bool slim_pending_add(int fd)
{
	int seen = atomic_load(&top);

	for (int i = 0; i < SLIM_PENDING_MAX; i++) {
		int empty = 0;

		if (!atomic_compare_exchange_strong(&list[i], &empty, fd + 1))
			continue;
		while (i >= seen && !atomic_compare_exchange_weak(&top, &seen, i + 1))
			;
		atomic_fetch_add(&slim_pending, 1);
		return true;
	}
	return false;
}

void slim_pending_drop(int fd)
{
	for (int i = 0; i < atomic_load(&top); i++) {
		int same = fd + 1;

		if (atomic_compare_exchange_strong(&list[i], &same, 0)) {
			atomic_fetch_sub(&slim_pending, 1);
			return;
		}
	}
}

int slim_pending_at(int index)
{
	if (index >= atomic_load_explicit(&top, memory_order_relaxed))
		return -2;
	return atomic_load_explicit(&list[index], memory_order_relaxed) - 1;
}

/* The parent goes on with the cold ones (registry.c); the warm ones are ours, too. */
void slim_pending_fork_child(void)
{
	struct slim_slot slot;
	int left = 0;

	for (int i = 0; i < SLIM_PENDING_MAX; i++) {
		int fd = atomic_load(&list[i]) - 1;

		if (fd >= 0 && slim_peek(fd, &slot) && slot.state == SLIM_PENDING_WARM)
			left++;
		else
			atomic_store(&list[i], 0);
	}
	atomic_store(&slim_pending, left);
}

static void cancel(uint64_t attempt, uint64_t cookie, int error)
{
	struct slim_msg msg;

	slim_message(&msg, SLIM_CANCEL);
	msg.value = attempt;
	msg.cookie = cookie;
	msg.error = (uint32_t)error;
	slim_tell(&msg);
}

/* Has anything been said on the overlay connection? Then it must stay. */
static bool unused(int fd)
{
	/* Offsets in struct tcp_info, include/uapi/linux/tcp.h; libc's is older. */
	enum { NOTSENT_BYTES = 144, DATA_SEGS_IN = 152, DATA_SEGS_OUT = 156, SIZE = 160 };
	char info[256];
	socklen_t len = sizeof(info);
	uint32_t unsent, in, out;

	if (sys_getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &len) < 0 || len < SIZE)
		return false;
	memcpy(&unsent, info + NOTSENT_BYTES, sizeof(unsent));
	memcpy(&in, info + DATA_SEGS_IN, sizeof(in));
	memcpy(&out, info + DATA_SEGS_OUT, sizeof(out));
	return info[0] == TCP_ESTABLISHED && !unsent && !in && !out;
}

/*
 * Has the application had its say, or the peer's? Whoever writes or reads before he asks
 * how his connect went has used this connection: it may end, but not begin anew.
 */
static bool spoken(int fd)
{
	enum { BYTES_RECEIVED = 128, BYTES_SENT = 200, BYTES_RETRANS = 208, SIZE = 216 };
	char info[256];
	socklen_t len = sizeof(info);
	uint64_t received, sent, again;

	if (sys_getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &len) < 0 || len < SIZE)
		return false;
	memcpy(&received, info + BYTES_RECEIVED, sizeof(received));
	memcpy(&sent, info + BYTES_SENT, sizeof(sent));
	memcpy(&again, info + BYTES_RETRANS, sizeof(again));
	return received || sent - again > SLIM_HELLO_SIZE;
}

/* The acknowledged SYN counts as a byte (tcp_snd_una_update, net/ipv4/tcp_input.c). */
bool slim_reset_after_handshake(int fd)
{
	enum { BYTES_ACKED = 120, SIZE = 128 };
	char info[256];
	socklen_t len = sizeof(info);
	uint64_t acked;

	if (!(sys_poll(fd, POLLOUT, 0) & POLLERR) || sys_getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &len) < 0 ||
	    len < SIZE)
		return false;
	memcpy(&acked, info + BYTES_ACKED, sizeof(acked));
	return acked > 0;
}

/* A port that the application chose stays taken for as long as its connection lives. */
int slim_keep_port(int fd, const struct slim_slot *slot)
{
	return slot->flags & SLIM_S_BOUND ? slim_hide(fd) : -1;
}

/* The overlay connect of fd is complete: take the host connection if it is there. */
bool slim_swap(int fd, struct slim_slot *slot, int bound_us)
{
	struct slim_msg ask, reply;
	struct iovec iov;
	struct msghdr commit = { .msg_iov = &iov, .msg_iovlen = 1 };
	int flags, host;
	uint64_t was = slot->cookie;

	slim_message(&ask, SLIM_SWAP);
	ask.value = slot->attempt;
	ask.error = (uint32_t)(bound_us > 0 ? bound_us : 0);
	if (slim_ask(&ask, NULL, 0, (uint8_t[SLIM_ANSWERS]){ SLIM_SWAPPED, SLIM_KEEP }, &reply, &host,
		     bound_us + slim_reply_us()) < 0) {
		slim_uncounted();
		return false;
	}
	if (reply.type != SLIM_SWAPPED || host < 0)
		return false;
	flags = sys_fcntl(fd, F_GETFL, 0);
	/* After a fork somebody else may hold the overlay's socket: it must go on. */
	if (flags < 0 || !unused(fd) || slim_cookie(fd) != was || slim_cookie(host) != reply.cookie ||
	    slot->generation != atomic_load(&slim_generation))
		goto keep;
	slim_carry_options(fd, host, slot, slot->options);
	if ((sys_fcntl(host, F_GETFL, 0) ^ flags) & (O_NONBLOCK | O_ASYNC))
		sys_fcntl(host, F_SETFL, flags);
	iov.iov_base = reply.commit;
	iov.iov_len = sizeof(reply.commit);
	if (sys_sendmsg(host, &commit, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)sizeof(reply.commit))
		goto keep;
	/* From here on the host connection is the connection. */
	slot->state = SLIM_CONNECTED;
	slot->cookie = reply.cookie;
	slot->hidden = slim_keep_port(fd, slot);
	memcpy(slot->local, reply.local, 16);
	slot->lport = reply.lport;
	if (slim_replace(fd, host, slot, was) < 0) {
		slim_unhide(slot->hidden);
		return true;
	}
	slim_put(fd, slot);
	slim_message(&ask, SLIM_COMMITTED);
	ask.cookie = reply.cookie;
	slim_tell(&ask);
	return true;
keep:
	sys_close(host);
	cancel(0, reply.cookie, EINPROGRESS);
	return false;
}

static void settle(int fd, struct slim_slot *slot)
{
	slot->state = SLIM_FRESH;
	slot->cookie = 0;
	slot->hidden = -1;
	slim_put(fd, slot);
}

/* What has become of a connect, as poll tells it: 0 is nothing yet. */
static int progress(int fd)
{
	int ready = sys_poll(fd, POLLOUT, 0);
	char info[256];
	socklen_t len = sizeof(info);

	/* Written full before anybody asked: connected all the same. */
	if (ready == 0 && sys_getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &len) == 0 && info[0] != TCP_SYN_SENT &&
	    info[0] != TCP_SYN_RECV && info[0] != TCP_CLOSE)
		return POLLOUT;
	return ready;
}

static enum slim_outcome resolve_cold(int fd, struct slim_slot *slot, int64_t deadline_us, bool spare)
{
	int ready = progress(fd);
	int64_t left;

	if (ready <= 0) {
		slim_claim(fd, SLIM_RESOLVING, SLIM_PENDING_COLD);
		return SLIM_NOT_YET;
	}
	left = deadline_us - slim_now_us();
	if (left <= 0 && !(ready & (POLLERR | POLLHUP)) && spare) {
		slim_claim(fd, SLIM_RESOLVING, SLIM_PENDING_COLD);
		return SLIM_LATER;
	}
	slim_pending_drop(fd);
	if (ready & (POLLERR | POLLHUP)) {
		cancel(slot->attempt, 0, 0);
		settle(fd, slot);
		return SLIM_DONE;
	}
	if (!slim_swap(fd, slot, left > 0 ? (int)left : 0)) {
		cancel(slot->attempt, 0, 0);
		settle(fd, slot);
	}
	return SLIM_DONE;
}

static enum slim_outcome resolve_warm(int fd, struct slim_slot *slot)
{
	struct sockaddr_storage addr;
	int ready = progress(fd);
	int overlay = slot->hidden, flags;
	socklen_t len;

	if (ready <= 0) {
		slim_claim(fd, SLIM_RESOLVING, SLIM_PENDING_WARM);
		return SLIM_NOT_YET;
	}
	slim_pending_drop(fd);
	if (!(ready & (POLLERR | POLLHUP)) || spoken(fd)) {
		if (!(slot->flags & SLIM_S_BOUND)) {
			slim_unhide(overlay);
			slot->hidden = -1;
		}
		slot->state = SLIM_CONNECTED;
		slim_put(fd, slot);
		return SLIM_DONE;
	}
	/* The host path failed before success was reported: the overlay takes over. */
	cancel(0, slot->cookie, ECONNREFUSED);
	flags = sys_fcntl(fd, F_GETFL, 0);
	if (slim_replace(fd, overlay, slot, slot->cookie) < 0)
		return SLIM_DONE;
	len = slim_make_sockaddr(slot->peer, slot->pport, slot->family, &addr);
	settle(fd, slot);
	/* (after a fork, parent and child share the overlay's socket) */
	if (sys_connect(fd, (struct sockaddr *)&addr, len) < 0 && errno != EINPROGRESS && errno != EALREADY &&
	    errno != EISCONN) {
		slot->state = SLIM_FAILED;
		slot->error = (uint8_t)errno;
		slim_put(fd, slot);
	}
	sys_fcntl(fd, F_SETFL, flags); /* as they are now, not as they were at connect */
	return SLIM_FELL_BACK;
}

/*
 * Until when a connect may be looked at. Who waits for this one descriptor alone, and
 * long enough (us; -1: for ever), is held up no more than by a blocking connect; an
 * event loop has other things to do.
 */
int64_t slim_deadline(bool alone, int64_t wait_us)
{
	bool patient = alone && (wait_us < 0 || wait_us >= slim_bound_us(true));

	return slim_now_us() + slim_bound_us(patient);
}

/* `spare`: the caller can come back to it, so that many at once share one bound. */
enum slim_outcome slim_resolve(int fd, int64_t deadline_us, bool spare)
{
	enum slim_outcome outcome = SLIM_NOT_YET;
	struct slim_slot slot;
	int saved = errno;

	if (slim_foreign_process())
		return SLIM_NOT_YET;
	if (!slim_get(fd, &slot)) { /* closed behind our back */
		if (slim_used(fd))
			slim_release(fd, true);
		slim_pending_drop(fd);
	} else if (slot.state == SLIM_PENDING_COLD && slim_claim(fd, SLIM_PENDING_COLD, SLIM_RESOLVING)) {
		outcome = resolve_cold(fd, &slot, deadline_us, spare);
	} else if (slot.state == SLIM_PENDING_WARM && slim_claim(fd, SLIM_PENDING_WARM, SLIM_RESOLVING)) {
		outcome = resolve_warm(fd, &slot);
	} else if (slot.state == SLIM_FREE || slot.state == SLIM_FRESH || slot.state == SLIM_CONNECTED) {
		slim_pending_drop(fd);
		outcome = SLIM_DONE;
	}
	errno = saved;
	return outcome;
}
