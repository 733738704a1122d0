/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every number there is: what later kernels add must not slip through a list of names.
 * What is allowed stands here a second time, written from the contract and not from the
 * list that module and BPF programs share.
 */
#include "escape.h"

#include <poll.h>
#include <sys/mman.h>

struct pair {
	int level, option;
};

/* Legitimate to set; all of these may be read too. */
static const struct pair settable[] = {
	{ SOL_SOCKET, 9 /* SO_KEEPALIVE */ },	  { SOL_SOCKET, 13 /* SO_LINGER */ },
	{ SOL_SOCKET, 8 /* SO_RCVBUF */ },	  { SOL_SOCKET, 7 /* SO_SNDBUF */ },
	{ SOL_SOCKET, 18 /* SO_RCVLOWAT */ },	  { SOL_SOCKET, 20 /* SO_RCVTIMEO_OLD */ },
	{ SOL_SOCKET, 21 /* SO_SNDTIMEO_OLD */ }, { SOL_SOCKET, 66 /* SO_RCVTIMEO_NEW */ },
	{ SOL_SOCKET, 67 /* SO_SNDTIMEO_NEW */ }, { SOL_SOCKET, 10 /* SO_OOBINLINE */ },
	{ SOL_SOCKET, 2 /* SO_REUSEADDR */ },	  { SOL_SOCKET, 15 /* SO_REUSEPORT */ },
	{ IPPROTO_TCP, 1 /* TCP_NODELAY */ },	  { IPPROTO_TCP, 3 /* TCP_CORK */ },
	{ IPPROTO_TCP, 4 /* TCP_KEEPIDLE */ },	  { IPPROTO_TCP, 5 /* TCP_KEEPINTVL */ },
	{ IPPROTO_TCP, 6 /* TCP_KEEPCNT */ },	  { IPPROTO_TCP, 8 /* TCP_LINGER2 */ },
	{ IPPROTO_TCP, 12 /* TCP_QUICKACK */ },	  { IPPROTO_TCP, 16 /* TCP_THIN_LINEAR_TIMEOUTS */ },
	{ IPPROTO_TCP, 17 /* TCP_THIN_DUPACK */ }, { IPPROTO_TCP, 18 /* TCP_USER_TIMEOUT */ },
	{ IPPROTO_TCP, 25 /* TCP_NOTSENT_LOWAT */ },
};

/* Legitimate to read besides. */
static const struct pair readable[] = {
	{ SOL_SOCKET, 4 /* SO_ERROR */ },	 { SOL_SOCKET, 3 /* SO_TYPE */ },
	{ SOL_SOCKET, 39 /* SO_DOMAIN */ },	 { SOL_SOCKET, 38 /* SO_PROTOCOL */ },
	{ SOL_SOCKET, 30 /* SO_ACCEPTCONN */ },	 { SOL_SOCKET, 57 /* SO_COOKIE */ },
	{ SOL_SOCKET, 71 /* SO_NETNS_COOKIE */ }, { IPPROTO_TCP, 11 /* TCP_INFO */ },
	{ IPPROTO_TCP, 2 /* TCP_MAXSEG */ },	 { IPPROTO_TCP, 13 /* TCP_CONGESTION */ },
};

/* FIOCLEX FIONCLEX FIONBIO FIOASYNC FIONREAD TIOCOUTQ SIOCOUTQNSD SIOCATMARK */
static const unsigned allowed_ioctls[] = { 0x5451, 0x5450, 0x5421, 0x5452, 0x541B, 0x5411, 0x894B, 0x8905 };

/* SOL_SOCKET, IP, TCP, UDP, IPV6, ICMPV6, SCTP, RAW, NETLINK, TLS, XDP, MPTCP, SMC, VSOCK */
static const int levels[] = { 0, 1, 6, 17, 41, 58, 132, 255, 270, 281, 282, 283, 284, 286, 287 };

static bool in(const struct pair *list, size_t n, int level, int option)
{
	for (size_t i = 0; i < n; i++)
		if (list[i].level == level && list[i].option == option)
			return true;
	return false;
}

static bool may_set(int level, int option)
{
	return in(settable, sizeof(settable) / sizeof(settable[0]), level, option);
}

static bool may_get(int level, int option)
{
	return may_set(level, option) ||
	       in(readable, sizeof(readable) / sizeof(readable[0]), level, option);
}

struct tally {
	int n;
	char names[240];
};

static void count(struct tally *t, const char *format, ...)
{
	size_t used = strlen(t->names);
	va_list arguments;

	t->n++;
	if (used > sizeof(t->names) - 24)
		return;
	va_start(arguments, format);
	vsnprintf(t->names + used, sizeof(t->names) - used, format, arguments);
	va_end(arguments);
}

static enum outcome sweep_get(struct ctx *c)
{
	struct tally answered = { 0 };
	unsigned char data[1024];

	for (size_t l = 0; l < sizeof(levels) / sizeof(levels[0]); l++) {
		for (int option = 0; option < 256; option++) {
			socklen_t size = sizeof(data);
			const struct fact *f;

			memset(data, 0, sizeof(data));
			if (c_getsockopt(c, levels[l], option, data, &size) < 0)
				continue;
			f = scan(data, sizeof(data));
			if (f)
				return leaked(c, "option %d/%d holds the %s", levels[l], option, f->kind);
			if (!may_get(levels[l], option))
				count(&answered, " %d/%d", levels[l], option);
		}
	}
	if (answered.n)
		return succeeded(c, "%d options answer that should not:%s", answered.n, answered.names);
	say(c, "none answers but the allowed ones");
	return denied(c);
}

static enum outcome sweep_set(struct ctx *c)
{
	struct tally taken = { 0 };

	for (size_t l = 0; l < sizeof(levels) / sizeof(levels[0]); l++) {
		for (int option = 0; option < 256; option++) {
			uint64_t value = 1;

			if (may_set(levels[l], option))
				continue;
			if (c_setsockopt(c, levels[l], option, &value, 4) == 0 ||
			    c_setsockopt(c, levels[l], option, &value, 8) == 0)
				count(&taken, " %d/%d", levels[l], option);
		}
	}
	if (taken.n)
		return succeeded(c, "%d options could be set that should not:%s", taken.n, taken.names);
	say(c, "none could be set but the allowed ones");
	return denied(c);
}

/* The socket ioctls and the terminal's, which share their numbers with files'. */
static enum outcome sweep_ioctl(struct ctx *c)
{
	static const unsigned first[] = { 0x5400, 0x8900, 0x8b00 };
	struct tally answered = { 0 };
	const char *interface = "lo";

	for (int i = settings.n_facts - 1; i >= 0; i--)
		if (strcmp(settings.facts[i].kind, "device") == 0)
			interface = settings.facts[i].text;
	for (size_t group = 0; group < sizeof(first) / sizeof(first[0]); group++) {
		for (unsigned number = first[group]; number < first[group] + 256; number++) {
			unsigned char data[1024] = { 0 };
			bool allowed = false;
			int own = getpid();

			for (size_t i = 0; i < sizeof(allowed_ioctls) / sizeof(allowed_ioctls[0]); i++)
				allowed = allowed || allowed_ioctls[i] == number;
			if (allowed)
				continue;
			if (number == 0x8901 || number == 0x8902) /* FIOSETOWN, SIOCSPGRP */
				memcpy(data, &own, sizeof(own));
			else
				snprintf((char *)data, 16, "%.15s", interface);
			/* SIOCGSKNS gives a descriptor. */
			if (c_ioctl(c, number, data) < 0)
				continue;
			memset(data, 0, 16);
			if (scan(data, sizeof(data)))
				return leaked(c, "ioctl %#x holds a fact", number);
			count(&answered, " %#x", number);
		}
	}
	if (answered.n)
		return succeeded(c, "%d ioctls answer that should not:%s", answered.n, answered.names);
	say(c, "none answers but the allowed ones");
	return denied(c);
}

/* What must go on working, or the guard is no guard but a wall. */
static enum outcome sweep_allowed(struct ctx *c)
{
	int one = 1, queue = -1;
	uint64_t cookie = 0;
	socklen_t size = sizeof(cookie);
	struct {
		long sec, usec;
	} bound = { 1, 0 };

	if (c_setsockopt(c, IPPROTO_TCP, 1, &one, sizeof(one)) < 0)
		return c->unavailable ? NOT_APPLICABLE : broken(c, "TCP_NODELAY is refused");
	if (c_setsockopt(c, SOL_SOCKET, 9, &one, sizeof(one)) < 0)
		return broken(c, "SO_KEEPALIVE is refused");
	if (c_setsockopt(c, SOL_SOCKET, 20, &bound, sizeof(bound)) < 0)
		return broken(c, "SO_RCVTIMEO is refused");
	if (c_getsockopt(c, SOL_SOCKET, E_SO_COOKIE, &cookie, &size) < 0 || !cookie)
		return broken(c, "SO_COOKIE is refused");
	if (c->fd >= 0 && c_ioctl(c, 0x541B, &queue) < 0)
		return broken(c, "FIONREAD is refused");
	if (!ping(c, 1000))
		return broken(c, "the peer does not echo");
	say(c, "data, options and queue lengths work");
	return denied(c);
}

const struct attempt sweep_attempts[] = {
	{ "sweep-getsockopt", "learn", "any option that answers and is not on the list (15 levels, 256 numbers each)", sweep_get },
	{ "sweep-ioctl", "learn", "any ioctl that answers and is not on the list (768 numbers)", sweep_ioctl, .flags = NO_ADMIN },
	{ "sweep-setsockopt", "treat", "any option that can be set and is not on the list (15 levels, 256 numbers each)", sweep_set, .flags = NO_ADMIN },
	{ "allowed", "keep", "nothing: what a program needs must work all the same", sweep_allowed },
	{ 0 },
};
