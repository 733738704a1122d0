/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From one socket to its successor: the options that the application set, the
 * descriptor's flags, its places in epoll sets, and its copies.
 */
#include "slim.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/*
 * Options worth carrying; the index is the bit in slim_slot.options. In secure mode a
 * tagged host socket takes the short list of files/kmod/allow.h only. Of the others:
 */
enum secure {
	TAKEN, /* on the list */
	TOLD, /* a hint that no program depends on: set is answered as the overlay would, not done */
	STAYS, /* it changes what the program receives: such a connection stays on the overlay */
};

static const struct {
	int level, name;
	enum secure secure;
} carried[] = {
	{ SOL_SOCKET, SO_KEEPALIVE, TAKEN }, { SOL_SOCKET, SO_RCVBUF, TAKEN }, { SOL_SOCKET, SO_SNDBUF, TAKEN },
	{ SOL_SOCKET, SO_LINGER, TAKEN }, { SOL_SOCKET, SO_RCVTIMEO, TAKEN }, { SOL_SOCKET, SO_SNDTIMEO, TAKEN },
	{ SOL_SOCKET, SO_OOBINLINE, TAKEN }, { IPPROTO_IP, IP_TOS, TOLD },
	{ SOL_SOCKET, SO_PRIORITY /* which IP_TOS sets */, TOLD }, { SOL_SOCKET, SO_RCVLOWAT, TAKEN },
	{ SOL_SOCKET, SO_TIMESTAMP, STAYS }, { SOL_SOCKET, SO_TIMESTAMPNS, STAYS },
	{ SOL_SOCKET, 46 /* SO_BUSY_POLL */, TOLD }, { SOL_SOCKET, 47 /* SO_MAX_PACING_RATE */, TOLD },
	{ SOL_SOCKET, 60 /* SO_ZEROCOPY */, STAYS }, { SOL_SOCKET, SO_DEBUG, TOLD },
	{ SOL_SOCKET, SO_DONTROUTE, STAYS }, { IPPROTO_TCP, TCP_NODELAY, TAKEN },
	{ IPPROTO_TCP, TCP_KEEPIDLE, TAKEN }, { IPPROTO_TCP, TCP_KEEPINTVL, TAKEN },
	{ IPPROTO_TCP, TCP_KEEPCNT, TAKEN }, { IPPROTO_TCP, TCP_CORK, TAKEN },
	{ IPPROTO_TCP, TCP_USER_TIMEOUT, TAKEN }, { IPPROTO_TCP, TCP_QUICKACK, TAKEN },
	{ IPPROTO_TCP, 25 /* TCP_NOTSENT_LOWAT */, TAKEN }, { IPPROTO_TCP, TCP_CONGESTION, TOLD },
	{ IPPROTO_TCP, TCP_WINDOW_CLAMP, TOLD }, { IPPROTO_TCP, TCP_LINGER2, TAKEN },
	{ IPPROTO_TCP, 36 /* TCP_INQ */, STAYS }, { IPPROTO_TCP, TCP_MAXSEG, TOLD }, { IPPROTO_IP, IP_TTL, TOLD },
	{ IPPROTO_IPV6, IPV6_TCLASS, TOLD }, { IPPROTO_IPV6, IPV6_UNICAST_HOPS, TOLD },
	{ SOL_SOCKET, SO_REUSEADDR, TAKEN }, { SOL_SOCKET, 15 /* SO_REUSEPORT */, TAKEN },
	{ SOL_SOCKET, SO_BROADCAST, TOLD }, { SOL_SOCKET, 49 /* SO_INCOMING_CPU */, TOLD },
	{ SOL_SOCKET, 69 /* SO_PREFER_BUSY_POLL */, TOLD }, { IPPROTO_TCP, TCP_SYNCNT, TOLD },
	{ IPPROTO_IP, IP_RECVERR, STAYS }, { IPPROTO_IPV6, IPV6_RECVERR, STAYS },
	{ IPPROTO_IP, IP_MTU_DISCOVER, TOLD }, { IPPROTO_IPV6, IPV6_MTU_DISCOVER, TOLD },
	{ IPPROTO_IP, 24 /* IP_BIND_ADDRESS_NO_PORT */, TOLD },
};

/* Of no meaning once connected: nothing to carry. */
static const struct {
	int level, name;
} ignored[] = {
	{ IPPROTO_IPV6, IPV6_V6ONLY }, { IPPROTO_TCP, TCP_DEFER_ACCEPT }, { IPPROTO_TCP, 23 /* TCP_FASTOPEN */ },
	{ IPPROTO_IP, 51 /* IP_LOCAL_PORT_RANGE */ },
};

/* Of those that are TOLD, the ones that programs read back; the index is that in slot.told. */
static const struct {
	int level, name;
} told[] = {
	{ IPPROTO_IP, IP_TOS }, { SOL_SOCKET, SO_PRIORITY }, { IPPROTO_IP, IP_TTL }, { IPPROTO_IPV6, IPV6_TCLASS },
	{ IPPROTO_IPV6, IPV6_UNICAST_HOPS }, { SOL_SOCKET, 47 /* SO_MAX_PACING_RATE */ },
	{ IPPROTO_IP, IP_MTU_DISCOVER }, { IPPROTO_TCP, TCP_WINDOW_CLAMP },
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
_Static_assert(COUNT(carried) < 63, "bit 63 means: on the overlay only");
_Static_assert(COUNT(told) == SLIM_TOLD, "slim.h has room for these");

uint64_t slim_option_bit(int level, int name)
{
	for (size_t i = 0; i < COUNT(carried); i++)
		if (carried[i].level == level && carried[i].name == name)
			return 1ULL << i;
	for (size_t i = 0; i < COUNT(ignored); i++)
		if (ignored[i].level == level && ignored[i].name == name)
			return 0;
	/* Devices, marks, filters, source routes, kTLS ...: they mean the overlay's socket. */
	return SLIM_OPTION_OVERLAY;
}

bool slim_stays(uint64_t options)
{
	if (options & SLIM_OPTION_OVERLAY)
		return true;
	if (!options || !slim_secure())
		return false;
	for (size_t i = 0; i < COUNT(carried); i++)
		if (options & 1ULL << i && carried[i].secure == STAYS)
			return true;
	return false;
}

bool slim_harmless(int level, int name)
{
	for (size_t i = 0; i < COUNT(carried); i++)
		if (carried[i].level == level && carried[i].name == name)
			return carried[i].secure == TOLD;
	return slim_option_bit(level, name) == 0;
}

int slim_told(int level, int name)
{
	for (size_t i = 0; i < COUNT(told); i++)
		if (told[i].level == level && told[i].name == name)
			return (int)i;
	return -1;
}

void slim_carry_options(int from, int to, struct slim_slot *slot, uint64_t options)
{
	bool secure = slim_secure();
	int saved = errno;

	for (size_t i = 0; i < COUNT(carried); i++) {
		char value[64];
		socklen_t len = sizeof(value);
		int size, at;

		if (!(options & 1ULL << i))
			continue;
		at = secure && carried[i].secure == TOLD ? slim_told(carried[i].level, carried[i].name) : -1;
		if (secure && carried[i].secure != TAKEN && at < 0)
			continue; /* the kernel would refuse it */
		if (sys_getsockopt(from, carried[i].level, carried[i].name, value, &len) < 0)
			continue;
		if (at >= 0) {
			memcpy(&slot->told[at], value, sizeof(slot->told[at]));
			slot->told_set |= (uint8_t)(1 << at);
			continue;
		}
		if (carried[i].level == SOL_SOCKET && (carried[i].name == SO_RCVBUF || carried[i].name == SO_SNDBUF)) {
			/* socket(7): the kernel doubles the value that it is given */
			memcpy(&size, value, sizeof(size));
			size /= 2;
			memcpy(value, &size, sizeof(size));
		}
		sys_setsockopt(to, carried[i].level, carried[i].name, value, len);
	}
	errno = saved;
}

/*
 * The number behind `name` in a line. Not by strtoul(): headers since glibc 2.38 make
 * that a symbol of their own, and programs of older images would not start.
 */
static bool read_number(const char *line, const char *name, unsigned int base, uint64_t *value)
{
	const char *at = strstr(line, name), *start;

	if (!at)
		return false;
	for (at += strlen(name); *at == ' '; at++)
		;
	for (start = at, *value = 0;; at++) {
		unsigned int digit = (unsigned char)*at;

		if (digit >= '0' && digit <= '9')
			digit -= '0';
		else if (digit >= 'a' && digit <= 'f')
			digit -= 'a' - 10;
		else
			break;
		if (digit >= base)
			break;
		*value = *value * base + digit;
	}
	return at > start;
}

/* Read "tfd: N events: HEX data: HEX" for fd from one epoll set's fdinfo. */
static bool parse_registration(const char *line, int fd, struct slim_reg *reg)
{
	uint64_t tfd, events, data;

	if (!read_number(line, "tfd:", 10, &tfd) || tfd != (uint64_t)fd ||
	    !read_number(line, "events:", 16, &events) || !read_number(line, "data:", 16, &data))
		return false;
	reg->events = (uint32_t)events;
	reg->data = data;
	return true;
}

/* epoll sets that epoll_ctl did not show us (another libc call, io_uring, exec). */
static _Atomic uint32_t epolls_seen[8]; /* epfd + 1 */

void slim_saw_epoll(int epfd)
{
	for (int i = 0; i < 8; i++) {
		uint32_t none = 0, seen = atomic_load_explicit(&epolls_seen[i], memory_order_relaxed);

		if (seen == (uint32_t)epfd + 1)
			return;
		if (!seen && atomic_compare_exchange_strong(&epolls_seen[i], &none, (uint32_t)epfd + 1))
			return;
	}
	atomic_store(&epolls_seen[(unsigned int)epfd % 8], (uint32_t)epfd + 1);
}

/* Add what one set has of fd to the slot's registrations. */
static void find_in(int epfd, int fd, struct slim_slot *slot)
{
	static const char head[] = "/proc/self/fdinfo/";
	char path[40], text[4096 + 1], digits[12];
	int file, at = 0, value = epfd;
	size_t kept = 0;
	ssize_t got;

	do
		digits[at++] = (char)('0' + value % 10);
	while (value /= 10);
	memcpy(path, head, sizeof(head) - 1);
	for (size_t n = sizeof(head) - 1; at >= 0; n++)
		path[n] = at ? digits[--at] : (at--, '\0');
	file = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return;
	while ((got = syscall(SYS_read, file, text + kept, sizeof(text) - 1 - kept)) > 0) {
		char *line = text, *newline;

		kept += (size_t)got;
		text[kept] = '\0';
		while ((newline = strchr(line, '\n'))) {
			*newline = '\0';
			if (slot->nregs < SLIM_REGS && parse_registration(line, fd, &slot->regs[slot->nregs]))
				slot->regs[slot->nregs++].epfd = epfd;
			line = newline + 1;
		}
		kept = (size_t)(text + kept - line);
		memmove(text, line, kept);
	}
	sys_close(file);
}

static void find_registrations(int fd, struct slim_slot *slot)
{
	for (int i = 0; i < 8 && slot->nregs < SLIM_REGS; i++) {
		int epfd = (int)atomic_load(&epolls_seen[i]) - 1;

		if (epfd >= 0)
			find_in(epfd, fd, slot);
	}
}

/* A one-shot registration that has fired, or what epoll_ctl() did not follow (epoll.c). */
static void refresh(int fd, struct slim_slot *slot)
{
	for (int i = 0; i < slot->nregs; i++) {
		struct slim_slot now = { .nregs = 0 };

		if (!(slot->flags & SLIM_S_MODIFIED) && !(slot->regs[i].events & EPOLLONESHOT))
			continue;
		find_in(slot->regs[i].epfd, fd, &now);
		if (now.nregs)
			slot->regs[i] = now.regs[0];
	}
	slot->flags &= (uint8_t)~SLIM_S_MODIFIED;
}

static void put_under(int fd, int with, struct slim_slot *slot)
{
	int cloexec = sys_fcntl(fd, F_GETFD, 0) & FD_CLOEXEC ? O_CLOEXEC : 0;
	bool there[SLIM_REGS];

	refresh(fd, slot);
	/*
	 * dup3 over a descriptor that is in an epoll set while a copy of the old
	 * file lives leaves events that nobody can delete: take it out first.
	 */
	for (int i = 0; i < slot->nregs; i++)
		there[i] = sys_epoll_ctl(slot->regs[i].epfd, EPOLL_CTL_DEL, fd, NULL) == 0;
	sys_dup3(with, fd, cloexec);
	for (int i = 0; i < slot->nregs; i++) {
		struct epoll_event event = { .events = slot->regs[i].events, .data.u64 = slot->regs[i].data };

		if (there[i]) /* else that set is closed, and its number may be another's */
			sys_epoll_ctl(slot->regs[i].epfd, EPOLL_CTL_ADD, fd, &event);
	}
}

/*
 * Put `with` under fd, which keeps its flags and its places in epoll sets, and
 * under the copies of fd that this process has. `with` itself is closed.
 * O_NONBLOCK belongs to the file: the caller has made it equal. -1, and nothing
 * has changed but that `with` is closed: fd is not the socket `was` any more, since
 * another thread has closed it meanwhile.
 */
int slim_replace(int fd, int with, struct slim_slot *slot, uint64_t was)
{
	uint64_t old = slot->flags & SLIM_S_DUPPED ? slim_cookie(fd) : 0;
	int saved = errno, result = -1;

	if (slim_cookie(fd) != was)
		goto out;
	result = 0;
	if (!slot->nregs)
		find_registrations(fd, slot);
	put_under(fd, with, slot);
	if (old)
		for (int i = 0; i <= slim_highest(); i++) {
			struct slim_slot other;

			if (i == fd || i == with || !slim_peek(i, &other) || slim_cookie(i) != old)
				continue;
			put_under(i, with, &other);
			other.state = slot->state;
			other.cookie = slot->cookie;
			other.family = slot->family;
			memcpy(other.told, slot->told, sizeof(other.told));
			other.told_set = slot->told_set;
			other.hidden = slot->state == SLIM_LISTENER ? slim_hide(slot->hidden) : -1;
			memcpy(other.local, slot->local, 16);
			memcpy(other.peer, slot->peer, 16);
			other.lport = slot->lport;
			other.pport = slot->pport;
			slim_put(i, &other);
		}
out:
	if (slim_hidden(with))
		slim_unhide(with);
	else
		sys_close(with);
	errno = saved;
	return result;
}
