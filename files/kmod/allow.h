/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a container may do with a tagged socket. The one list for both keepers:
 * the module (files/kmod) and the BPF programs (files/bpf). Whatever is not
 * here is EPERM for a caller whose network namespace is not the socket's own.
 *
 * Use it as lists:   #define CASE(level, name, number) ...
 *                    SLIM_ALLOW_SETS(CASE)
 * or as functions:   slim_allow_set(level, name), slim_allow_get(level, name),
 *                    slim_allow_ioctl(cmd), slim_allow_send(flags, has_name,
 *                    control_length), slim_allow_recv(flags)
 *
 * Includes nothing, so that a BPF program without a libc can have it. The
 * numbers are those of the generic UAPI (x86, arm64, riscv, s390); check.c of
 * the module compares each with the kernel's own header when it is built, so
 * that an architecture with other numbers does not build at all.
 */
#ifndef SLIM_ALLOW_H
#define SLIM_ALLOW_H

#define SLIM_SOL_SOCKET	1
#define SLIM_SOL_TCP	6

/*
 * Options that may be set (and read). No address, interface, mark, priority,
 * pacing rate, filter, ULP or repair mode is among them.
 */
#define SLIM_ALLOW_SETS(X) \
	X(SLIM_SOL_SOCKET, SO_REUSEADDR, 2) \
	X(SLIM_SOL_SOCKET, SO_SNDBUF, 7) \
	X(SLIM_SOL_SOCKET, SO_RCVBUF, 8) \
	X(SLIM_SOL_SOCKET, SO_KEEPALIVE, 9) \
	X(SLIM_SOL_SOCKET, SO_OOBINLINE, 10) \
	X(SLIM_SOL_SOCKET, SO_LINGER, 13) \
	X(SLIM_SOL_SOCKET, SO_REUSEPORT, 15) \
	X(SLIM_SOL_SOCKET, SO_RCVLOWAT, 18) \
	X(SLIM_SOL_SOCKET, SO_RCVTIMEO_OLD, 20) \
	X(SLIM_SOL_SOCKET, SO_SNDTIMEO_OLD, 21) \
	X(SLIM_SOL_SOCKET, SO_RCVTIMEO_NEW, 66) \
	X(SLIM_SOL_SOCKET, SO_SNDTIMEO_NEW, 67) \
	X(SLIM_SOL_TCP, TCP_NODELAY, 1) \
	X(SLIM_SOL_TCP, TCP_CORK, 3) \
	X(SLIM_SOL_TCP, TCP_KEEPIDLE, 4) \
	X(SLIM_SOL_TCP, TCP_KEEPINTVL, 5) \
	X(SLIM_SOL_TCP, TCP_KEEPCNT, 6) \
	X(SLIM_SOL_TCP, TCP_LINGER2, 8) \
	X(SLIM_SOL_TCP, TCP_QUICKACK, 12) \
	X(SLIM_SOL_TCP, TCP_THIN_LINEAR_TIMEOUTS, 16) \
	X(SLIM_SOL_TCP, TCP_THIN_DUPACK, 17) \
	X(SLIM_SOL_TCP, TCP_USER_TIMEOUT, 18) \
	X(SLIM_SOL_TCP, TCP_NOTSENT_LOWAT, 25)

/*
 * Options that may only be read. The cookies are opaque numbers; TCP_INFO
 * shows segment size, round trip and counters of this one connection, and no
 * address.
 */
#define SLIM_ALLOW_GETS_ONLY(X) \
	X(SLIM_SOL_SOCKET, SO_TYPE, 3) \
	X(SLIM_SOL_SOCKET, SO_ERROR, 4) \
	X(SLIM_SOL_SOCKET, SO_ACCEPTCONN, 30) \
	X(SLIM_SOL_SOCKET, SO_PROTOCOL, 38) \
	X(SLIM_SOL_SOCKET, SO_DOMAIN, 39) \
	X(SLIM_SOL_SOCKET, SO_COOKIE, 57) \
	X(SLIM_SOL_SOCKET, SO_NETNS_COOKIE, 71) \
	X(SLIM_SOL_TCP, TCP_MAXSEG, 2) \
	X(SLIM_SOL_TCP, TCP_INFO, 11) \
	X(SLIM_SOL_TCP, TCP_CONGESTION, 13)

#define SLIM_ALLOW_GETS(X) \
	SLIM_ALLOW_SETS(X) \
	SLIM_ALLOW_GETS_ONLY(X)

/* FIONREAD is SIOCINQ, TIOCOUTQ is SIOCOUTQ: one number each. */
#define SLIM_ALLOW_IOCTLS(X) \
	X(FIONBIO, 0x5421) \
	X(FIOASYNC, 0x5452) \
	X(FIOCLEX, 0x5451) \
	X(FIONCLEX, 0x5450) \
	X(FIONREAD, 0x541b) \
	X(TIOCOUTQ, 0x5411) \
	X(SIOCOUTQNSD, 0x894b) \
	X(SIOCATMARK, 0x8905)

/*
 * Flags of send that are refused: MSG_FASTOPEN connects, MSG_ZEROCOPY fills
 * the error queue. The list for recv: MSG_ERRQUEUE carries addresses.
 */
#define SLIM_DENY_SEND_FLAGS(X) \
	X(MSG_FASTOPEN, 0x20000000) \
	X(MSG_ZEROCOPY, 0x4000000)

#define SLIM_DENY_RECV_FLAGS(X) \
	X(MSG_ERRQUEUE, 0x2000)

/* Nothing below needs a type that a compiler does not bring along. */
#define SLIM_ALLOW_OPTION_(level_, name_, number_) \
	if (level == (level_) && name == (number_)) \
		return 1;
#define SLIM_ALLOW_NUMBER_(name_, number_) \
	if (cmd == (number_)) \
		return 1;
#define SLIM_ALLOW_FLAG_(name_, number_) | (number_)

static inline __attribute__((always_inline)) int
slim_allow_set(int level, int name)
{
	SLIM_ALLOW_SETS(SLIM_ALLOW_OPTION_)
	return 0;
}

static inline __attribute__((always_inline)) int
slim_allow_get(int level, int name)
{
	SLIM_ALLOW_GETS(SLIM_ALLOW_OPTION_)
	return 0;
}

static inline __attribute__((always_inline)) int
slim_allow_ioctl(unsigned int cmd)
{
	SLIM_ALLOW_IOCTLS(SLIM_ALLOW_NUMBER_)
	return 0;
}

/* name: is msg_name set; control: msg_controllen. */
static inline __attribute__((always_inline)) int
slim_allow_send(unsigned int flags, int name, unsigned long control)
{
	return !(flags & (0u SLIM_DENY_SEND_FLAGS(SLIM_ALLOW_FLAG_))) &&
	       !name && !control;
}

static inline __attribute__((always_inline)) int
slim_allow_recv(unsigned int flags)
{
	return !(flags & (0u SLIM_DENY_RECV_FLAGS(SLIM_ALLOW_FLAG_)));
}

#endif
