/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Learn something of the host: an address, an interface, a namespace, a route, a secret.
 * What comes back is searched for the facts that the runner gave. Where no fact can be
 * given (a CPU, a queue, a clock) the row says which answers count (ANSWER, NONZERO).
 */
#include "escape.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/errqueue.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define LINUX_SIOCPROTOPRIVATE 0x89E0

static enum outcome get_name(struct ctx *c)
{
	struct sockaddr_storage sa = { 0 };
	socklen_t size = sizeof(sa);
	long result = c_getsockname(c, &sa, &size);

	if (result < 0)
		return denied_by(c, "getsockname", result);
	return scanned(c, "getsockname", &sa, size);
}

static enum outcome get_peer(struct ctx *c)
{
	struct sockaddr_storage sa = { 0 };
	socklen_t size = sizeof(sa);
	long result = c_getpeername(c, &sa, &size);

	if (result < 0)
		return denied_by(c, "getpeername", result);
	return scanned(c, "getpeername", &sa, size);
}

static bool zeros(const unsigned char *data, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (data[i])
			return false;
	return true;
}

/* getsockopt with level, option and flags of the row. */
static enum outcome get_option(struct ctx *c)
{
	const struct attempt *a = c->attempt;
	unsigned char data[4096] = { 0 };
	socklen_t size = a->value ? (socklen_t)a->value : sizeof(data);
	long result;
	const struct fact *f;

	if (a->size && a->data)
		memcpy(data, a->data, a->size);
	result = c_getsockopt(c, a->level, a->option, data, &size);
	if (result < 0)
		return denied_by(c, "getsockopt", result);
	if (size > sizeof(data))
		size = sizeof(data);
	f = scan(data, size);
	if (f)
		return leaked(c, "%u bytes with the %s %s", size, f->kind,
			      strcmp(f->kind, "secret") == 0 ? "(kept back)" : f->text);
	if (size && (a->flags & ANSWER))
		return leaked(c, "%u bytes: %02x %02x %02x %02x ...", size, data[0], data[1], data[2], data[3]);
	if ((a->flags & NONZERO) && !zeros(data, size))
		return leaked(c, "%u bytes: %02x %02x %02x %02x ...", size, data[0], data[1], data[2], data[3]);
	say(c, "%u bytes without a fact", size);
	return denied(c);
}

/* The address must be asked for with the very room that it takes. */
static enum outcome peer_name_option(struct ctx *c)
{
	struct sockaddr_storage sa = { 0 };
	socklen_t size = c->family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
	long result = c_getsockopt(c, SOL_SOCKET, E_SO_PEERNAME, &sa, &size);

	if (result < 0)
		return denied_by(c, "SO_PEERNAME", result);
	return scanned(c, "SO_PEERNAME", &sa, size);
}

/* BBR says what it believes of bandwidth and round trip; others say less. */
static enum outcome congestion_info(struct ctx *c)
{
	unsigned char data[64] = { 0 };
	socklen_t size = sizeof(data);
	long result;

	c_setsockopt(c, IPPROTO_TCP, E_TCP_CONGESTION, "bbr", 3);
	result = c_getsockopt(c, IPPROTO_TCP, E_TCP_CC_INFO, data, &size);
	if (result < 0)
		return denied_by(c, "TCP_CC_INFO", result);
	if (size)
		return leaked(c, "%u bytes of the host's congestion control", size);
	say(c, "0 bytes");
	return denied(c);
}

/* The header fields that a control message or a list of options brings. */
static enum outcome packet_options(struct ctx *c)
{
	unsigned char data[1024] = { 0 };
	socklen_t size = sizeof(data);
	int one = 1;
	long result;

	noted(c, "IP_PKTINFO", c_setsockopt(c, IPPROTO_IP, E_IP_PKTINFO, &one, sizeof(one)));
	c_setsockopt(c, IPPROTO_IP, E_IP_RECVTTL, &one, sizeof(one));
	result = c_getsockopt(c, IPPROTO_IP, E_IP_PKTOPTIONS, data, &size);
	if (noted(c, "IP_PKTOPTIONS", result) < 0)
		return denied(c);
	return scanned(c, "IP_PKTOPTIONS", data, size);
}

static enum outcome packet_options6(struct ctx *c)
{
	unsigned char data[1024] = { 0 };
	socklen_t size = sizeof(data);
	int one = 1;
	long result;

	noted(c, "IPV6_2292PKTINFO", c_setsockopt(c, IPPROTO_IPV6, E_IPV6_2292PKTINFO, &one, sizeof(one)));
	c_setsockopt(c, IPPROTO_IPV6, E_IPV6_RECVPKTINFO, &one, sizeof(one));
	/* With an interface set, the peer's address takes the place of an empty one. */
	for (int index = 2; index < 64; index++)
		if (c_setsockopt(c, IPPROTO_IPV6, E_IPV6_MULTICAST_IF, &index, sizeof(index)) == 0)
			break;
	result = c_getsockopt(c, IPPROTO_IPV6, E_IPV6_2292PKTOPTIONS, data, &size);
	if (noted(c, "IPV6_2292PKTOPTIONS", result) < 0)
		return denied(c);
	return scanned(c, "IPV6_2292PKTOPTIONS", data, size);
}

/* Bind to interface 1, 2, 3 ... and ask what it is called. */
static enum outcome interface_by_index(struct ctx *c)
{
	long result = 0;

	/* 1 is loopback everywhere. */
	for (int index = 2; index < 64; index++) {
		char name[IFNAMSIZ] = { 0 };
		socklen_t size = sizeof(name);
		int zero = 0;

		result = c_setsockopt(c, SOL_SOCKET, E_SO_BINDTOIFINDEX, &index, sizeof(index));
		if (result == -ENODEV)
			continue;
		if (result < 0)
			break;
		result = c_getsockopt(c, SOL_SOCKET, E_SO_BINDTODEVICE, name, &size);
		if (result < 0)
			break;
		const struct fact *f = scan(name, size);

		if (f)
			return leaked(c, "interface %d is %s", index, name);
		if (c_setsockopt(c, SOL_SOCKET, E_SO_BINDTOIFINDEX, &zero, sizeof(zero)) < 0) {
			/* Bound for good without NET_RAW: one guess a socket. */
			say(c, "interface %d is %s", index, name);
			if (strcmp(name, "lo") != 0 && name[0])
				return leaked(c, "a name without being told");
			break;
		}
	}
	return denied_by(c, "SO_BINDTOIFINDEX", result);
}

/* Is there an interface of that name? Success and ENODEV tell. */
static enum outcome interface_by_name(struct ctx *c)
{
	static const char nobody[IFNAMSIZ] = "nosuch0";
	long none, result = -ENODEV;

	none = c_setsockopt(c, SOL_SOCKET, E_SO_BINDTODEVICE, nobody, sizeof(nobody));
	for (int i = 0; i < settings.n_facts; i++) {
		char name[IFNAMSIZ] = { 0 };

		if (strcmp(settings.facts[i].kind, "device") != 0)
			continue;
		snprintf(name, sizeof(name), "%.15s", settings.facts[i].text);
		result = c_setsockopt(c, SOL_SOCKET, E_SO_BINDTODEVICE, name, sizeof(name));
		if (result != none && none == -ENODEV)
			return leaked(c, "%s exists on the host, nosuch0 does not", name);
	}
	return denied_by(c, "SO_BINDTODEVICE", result);
}

/* Every interface question with an address or a name in it. */
static enum outcome interface_list(struct ctx *c)
{
	struct ifreq list[32];
	struct ifconf question = { .ifc_len = sizeof(list), .ifc_buf = (char *)list };
	long result;

	memset(list, 0, sizeof(list));
	result = c_ioctl(c, E_SIOCGIFCONF, &question);
	if (result < 0)
		return denied_by(c, "SIOCGIFCONF", result);
	return scanned(c, "SIOCGIFCONF", list, sizeof(list));
}

static enum outcome interface_names(struct ctx *c)
{
	long result = 0, first = 0;

	for (int index = 1; index < 64; index++) {
		struct ifreq question = { .ifr_ifindex = index };

		result = c_ioctl(c, E_SIOCGIFNAME, &question);
		if (result < 0) {
			first = first ? first : result;
			continue;
		}
		if (scan(question.ifr_name, sizeof(question.ifr_name)))
			return leaked(c, "interface %d is %s", index, question.ifr_name);
	}
	return denied_by(c, "SIOCGIFNAME", first);
}

/* A question about one interface by its name; any answer but ENODEV tells of it. */
static enum outcome interface_question(struct ctx *c)
{
	long result = -ENODEV;

	for (int i = 0; i < settings.n_facts; i++) {
		struct {
			struct ifreq question;
			char more[512];
		} q;
		char filled[1024];

		if (strcmp(settings.facts[i].kind, "device") != 0)
			continue;
		memset(&q, 0, sizeof(q));
		memset(filled, 0, sizeof(filled));
		snprintf(q.question.ifr_name, IFNAMSIZ, "%.15s", settings.facts[i].text);
		if (c->attempt->flags & ANSWER) {
			uint32_t command = (uint32_t)c->attempt->value; /* ETHTOOL_GDRVINFO ... */

			memcpy(filled, &command, sizeof(command));
			q.question.ifr_data = filled;
		}
		result = c_ioctl(c, (unsigned long)c->attempt->option, &q);
		if (result >= 0)
			return leaked(c, "an answer about %s", settings.facts[i].text);
	}
	return denied_by(c, "ioctl", result);
}

/* The hardware address that the host has for its neighbour. */
static enum outcome neighbour(struct ctx *c)
{
	struct {
		struct sockaddr_in protocol;
		struct sockaddr hardware;
		int flags;
		struct sockaddr mask;
		char device[16];
	} q;
	long result = -ENODEV;

	for (int i = 0; i < settings.n_facts; i++) {
		if (strcmp(settings.facts[i].kind, "device") != 0)
			continue;
		memset(&q, 0, sizeof(q));
		q.protocol.sin_family = AF_INET;
		q.protocol.sin_addr = settings.peer_host;
		snprintf(q.device, sizeof(q.device), "%.15s", settings.facts[i].text);
		result = c_ioctl(c, E_SIOCGARP, &q);
		if (result >= 0)
			return leaked(c, "the neighbour's hardware address on %s", q.device);
	}
	return denied_by(c, "SIOCGARP", result);
}

/* VLANs, bridges, bonds: interfaces' private tables. */
static enum outcome ioctl_answer(struct ctx *c)
{
	unsigned char data[1024] = { 0 };
	long result;

	if (c->attempt->data)
		memcpy(data, c->attempt->data, c->attempt->size);
	result = c_ioctl(c, (unsigned long)c->attempt->option, data);
	if (result < 0)
		return denied_by(c, "ioctl", result);
	if (scan(data, sizeof(data)))
		return scanned(c, "ioctl", data, sizeof(data));
	if (c->attempt->flags & ANSWER)
		return leaked(c, "it answers: %02x %02x %02x %02x", data[0], data[1], data[2], data[3]);
	say(c, "an answer without a fact");
	return denied(c);
}

/* The socket's namespace as a descriptor; then a socket of our own in it. */
static enum outcome namespace_handle(struct ctx *c)
{
	long result = c_ioctl(c, E_SIOCGSKNS, NULL), own;
	char inode[32];
	struct stat status;

	if (result < 0)
		return denied_by(c, "SIOCGSKNS", result);
	if (raw(SYS_fstat, result, &status) == 0) {
		snprintf(inode, sizeof(inode), "%llu", (unsigned long long)status.st_ino);
		for (int i = 0; i < settings.n_facts; i++)
			if (strcmp(settings.facts[i].kind, "netns") == 0 &&
			    strcmp(settings.facts[i].text, inode) == 0)
				say(c, "a handle on the host's network namespace %s", inode);
	}
	if (noted(c, "setns", raw(SYS_setns, result, CLONE_NEWNET)) < 0)
		return leaked(c, "a handle, not entered");
	own = raw(SYS_socket, AF_INET, SOCK_STREAM, 0);
	raw(SYS_close, c->fd);
	c->fd = (int)own;
	c->index = -1;
	c->ring = NULL;
	c->family = AF_INET;
	struct sockaddr_storage sa;
	socklen_t size = host_address(c, &sa, settings.canary, settings.canary_port);

	if (noted(c, "connect", c_connect(c, &sa, size)) < 0)
		return leaked(c, "entered");
	if (talk(c) == SUCCEEDED)
		return succeeded(c, "by a socket of our own in the host's namespace");
	return leaked(c, "entered");
}

static enum outcome received_name(struct ctx *c)
{
	char data[64];
	struct sockaddr_storage sa = { 0 };
	struct iovec part = { data, sizeof(data) };
	struct msghdr message = { .msg_name = &sa,
				  .msg_namelen = sizeof(sa),
				  .msg_iov = &part,
				  .msg_iovlen = 1 };
	long result;

	c_write(c, "hello\n", 6);
	result = c_recvmsg(c, &message, 0);
	if (result < 0)
		return denied_by(c, "recvmsg", result);
	return scanned(c, "msg_name", &sa, sizeof(sa));
}

static enum outcome received_control(struct ctx *c)
{
	static const struct {
		int level, option;
	} wanted[] = {
		{ IPPROTO_IP, E_IP_PKTINFO },	    { IPPROTO_IP, E_IP_RECVTTL },
		{ IPPROTO_IP, E_IP_RECVORIGDSTADDR }, { IPPROTO_IPV6, E_IPV6_RECVPKTINFO },
		{ IPPROTO_IP, 6 },		    { IPPROTO_IP, 13 },
		{ SOL_SOCKET, E_SO_RXQ_OVFL },	    { SOL_SOCKET, E_SO_RCVMARK },
		{ IPPROTO_TCP, E_TCP_INQ },
	};
	char data[64];
	unsigned char control[1024] = { 0 };
	struct iovec part = { data, sizeof(data) };
	struct msghdr message = { .msg_iov = &part,
				  .msg_iovlen = 1,
				  .msg_control = control,
				  .msg_controllen = sizeof(control) };
	int one = 1;
	long result;

	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
		c_setsockopt(c, wanted[i].level, wanted[i].option, &one, sizeof(one));
	c_write(c, "hello\n", 6);
	result = c_recvmsg(c, &message, 0);
	if (result < 0)
		return denied_by(c, "recvmsg", result);
	return scanned(c, "control messages", control, sizeof(control));
}

static enum outcome error_queue(struct ctx *c, unsigned char *control, size_t size, size_t *got,
				struct sockaddr_storage *sa)
{
	char data[2048];
	struct iovec part = { data, sizeof(data) };
	struct msghdr message = { .msg_name = sa,
				  .msg_namelen = sizeof(*sa),
				  .msg_iov = &part,
				  .msg_iovlen = 1,
				  .msg_control = control,
				  .msg_controllen = size };
	long result;

	if (c->fd >= 0)
		wait_for(c->fd, POLLERR, 80);
	result = c_recvmsg(c, &message, MSG_ERRQUEUE | MSG_DONTWAIT);
	if (noted(c, "recvmsg(MSG_ERRQUEUE)", result) < 0)
		return DENIED;
	*got = message.msg_controllen;
	if (scan(sa, sizeof(*sa)))
		return scanned(c, "the sender of an error", sa, sizeof(*sa));
	return scanned(c, "the error queue", control, *got);
}

/* A packet's time stamp, with the interface that it left by. */
static enum outcome stamped(struct ctx *c)
{
	unsigned flags = E_TX_SOFTWARE | E_TS_SOFTWARE | E_TS_OPT_CMSG | (1u << 12) /* OPT_STATS */;
	unsigned char control[1024] = { 0 };
	struct sockaddr_storage sa = { 0 };
	struct cmsghdr *head;
	size_t got = 0;
	int one = 1;
	enum outcome outcome;

	flags |= 1u << 11; /* OPT_TSONLY, which OPT_STATS asks for */
	noted(c, "SO_TIMESTAMPING",
	      c_setsockopt(c, SOL_SOCKET, E_SO_TIMESTAMPING, &flags, sizeof(flags)));
	c_setsockopt(c, IPPROTO_IP, E_IP_RECVERR, &one, sizeof(one));
	c_write(c, "hello\n", 6);
	outcome = error_queue(c, control, sizeof(control), &got, &sa);
	if (outcome == LEAKED)
		return outcome;
	struct msghdr walk = { .msg_control = control, .msg_controllen = got };

	for (head = CMSG_FIRSTHDR(&walk); head; head = CMSG_NXTHDR(&walk, head)) {
		if (head->cmsg_level == IPPROTO_IP && head->cmsg_type == E_IP_PKTINFO) {
			int index;

			memcpy(&index, CMSG_DATA(head), sizeof(index));
			if (index)
				return leaked(c, "the packet left by interface %d", index);
		}
		if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == 54) /* OPT_STATS */
			return leaked(c, "the connection's statistics, and when a packet left the host");
	}
	if (got)
		return leaked(c, "when a packet left the host");
	return denied(c);
}

static enum outcome stamped_receive(struct ctx *c)
{
	int one = 1;
	char data[64];
	unsigned char control[256] = { 0 };
	struct iovec part = { data, sizeof(data) };
	struct msghdr message = { .msg_iov = &part,
				  .msg_iovlen = 1,
				  .msg_control = control,
				  .msg_controllen = sizeof(control) };
	long result;

	result = c_setsockopt(c, SOL_SOCKET, E_SO_TIMESTAMPNS, &one, sizeof(one));
	noted(c, "SO_TIMESTAMPNS", result);
	c_write(c, "hello\n", 6);
	result = c_recvmsg(c, &message, 0);
	if (noted(c, "recvmsg", result) < 0)
		return denied(c);
	if (message.msg_controllen)
		return leaked(c, "when the host received a packet");
	return denied(c);
}

/* Was the data copied? Tells whether the peer is on this host. */
static enum outcome zerocopy(struct ctx *c)
{
	static char page[8192];
	unsigned char control[256] = { 0 };
	struct sockaddr_storage sa = { 0 };
	size_t got = 0;
	int one = 1;
	struct cmsghdr *head;

	if (noted(c, "SO_ZEROCOPY", c_setsockopt(c, SOL_SOCKET, E_SO_ZEROCOPY, &one, sizeof(one))) < 0)
		return denied(c);
	if (noted(c, "send(MSG_ZEROCOPY)", c_sendto(c, page, sizeof(page), 0x4000000, NULL, 0)) < 0)
		return denied(c);
	if (error_queue(c, control, sizeof(control), &got, &sa) == LEAKED)
		return LEAKED;
	struct msghdr walk = { .msg_control = control, .msg_controllen = got };

	for (head = CMSG_FIRSTHDR(&walk); head; head = CMSG_NXTHDR(&walk, head)) {
		struct sock_extended_err *e = (struct sock_extended_err *)CMSG_DATA(head);

		if (e->ee_origin == E_EE_ORIGIN_ZEROCOPY)
			return leaked(c, "the data was %s on its way",
				      e->ee_code & E_EE_CODE_ZEROCOPY_COPIED ? "copied" : "not copied");
	}
	return denied(c);
}

/* ICMP errors name the router that sent them. */
static enum outcome icmp_errors(struct ctx *c)
{
	int one = 1;
	unsigned char control[512] = { 0 };
	struct sockaddr_storage sa = { 0 };
	size_t got = 0;

	noted(c, "IP_RECVERR", c_setsockopt(c, IPPROTO_IP, E_IP_RECVERR, &one, sizeof(one)));
	noted(c, "IP_TTL", c_setsockopt(c, IPPROTO_IP, E_IP_TTL, &one, sizeof(one)));
	c_write(c, "hello\n", 6);
	error_queue(c, control, sizeof(control), &got, &sa);
	if (got && scan(control, got))
		return scanned(c, "an ICMP error", control, got);
	return denied(c);
}

/* A filter sees the whole packet; whether data arrives tells what it saw. */
static long attach(struct ctx *c, uint32_t source)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)SKF_NET_OFF + 12), /* saddr */
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, source, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, 0x7fffffff),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };

	return c_setsockopt(c, SOL_SOCKET, E_SO_ATTACH_FILTER, &program, sizeof(program));
}

static enum outcome filter_address(struct ctx *c)
{
	uint32_t right = ntohl(settings.peer_host.s_addr);
	bool first, second;

	if (noted(c, "SO_ATTACH_FILTER", attach(c, right)) < 0)
		return denied(c);
	first = ping(c, 500);
	attach(c, right ^ 1);
	if (!c_needs_fd(c))
		return denied(c);
	second = ping(c, 60);
	if (first && !second)
		return leaked(c, "packets come from %s, not from its neighbour: bit by bit",
			      inet_ntoa(settings.peer_host));
	say(c, "with the address %d, with another %d", first, second);
	return denied(c);
}

static enum outcome file_text(struct ctx *c, const char *format)
{
	char path[64], text[16384];
	int fd;
	long got;

	if (!c_needs_fd(c))
		return denied(c);
	snprintf(path, sizeof(path), format, c->fd);
	fd = (int)raw(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return denied_by(c, path, fd);
	got = raw(SYS_read, fd, text, sizeof(text));
	raw(SYS_close, fd);
	return got < 0 ? denied_by(c, path, got) : scanned(c, path, text, (size_t)got);
}

static enum outcome descriptor_info(struct ctx *c)
{
	return file_text(c, "/proc/self/fdinfo/%d");
}

static enum outcome descriptor_open(struct ctx *c)
{
	return file_text(c, "/proc/self/fd/%d");
}

static enum outcome descriptor_link(struct ctx *c)
{
	char path[64], text[256];
	struct stat status;
	long got;

	if (!c_needs_fd(c))
		return denied(c);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", c->fd);
	got = raw(SYS_readlink, path, text, sizeof(text));
	if (got < 0)
		return denied_by(c, "readlink", got);
	raw(SYS_fstat, c->fd, &status);
	return scanned(c, "link", text, (size_t)got);
}

static enum outcome attributes(struct ctx *c)
{
	char names[512] = { 0 }, value[256] = { 0 };
	long got;

	if (!c_needs_fd(c))
		return denied(c);
	got = raw(SYS_flistxattr, c->fd, names, sizeof(names));
	if (got < 0)
		return denied_by(c, "flistxattr", got);
	for (char *p = names; p < names + got; p += strlen(p) + 1) {
		long size = raw(SYS_fgetxattr, c->fd, p, value, sizeof(value));

		if (size > 0 && scan(value, (size_t)size))
			return scanned(c, p, value, (size_t)size);
	}
	say(c, "%ld bytes of names, no fact", got);
	return denied(c);
}

static enum outcome proc_tables(struct ctx *c)
{
	static const char *const paths[] = { "/proc/self/net/tcp", "/proc/self/net/tcp6",
					     "/proc/self/net/route", "/proc/self/net/fib_trie",
					     "/proc/self/net/dev", "/proc/self/net/arp" };
	static char text[65536];

	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
		int fd = (int)raw(SYS_openat, AT_FDCWD, paths[i], O_RDONLY | O_CLOEXEC);
		long got = fd < 0 ? 0 : raw(SYS_read, fd, text, sizeof(text) - 1);

		if (fd >= 0)
			raw(SYS_close, fd);
		if (got <= 0)
			continue;
		text[got] = 0;
		/* tcp and route print an address as one word of the machine's byte order. */
		for (int f = 0; f < settings.n_facts; f++) {
			char word[16];
			uint32_t ip;

			if (strcmp(settings.facts[f].kind, "address") != 0 || settings.facts[f].size != 4)
				continue;
			memcpy(&ip, settings.facts[f].bytes, 4);
			snprintf(word, sizeof(word), "%08X", ip);
			if (strstr(text, word))
				return leaked(c, "%s has %s", paths[i], settings.facts[f].text);
		}
		if (scan(text, (size_t)got))
			return scanned(c, paths[i], text, (size_t)got);
	}
	say(c, "the container's own tables hold no fact");
	return denied(c);
}

/* sock_diag of our own namespace: every socket, and the one with this cookie. */
static enum outcome diag(struct ctx *c, bool exact)
{
	struct {
		struct nlmsghdr head;
		struct inet_diag_req_v2 question;
	} q = { 0 };
	static char answer[65536];
	uint64_t cookie = c->fd >= 0 ? cookie_of(c->fd) : 0;
	int fd = (int)raw(SYS_socket, AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	long got;
	bool end = false;

	if (fd < 0)
		return not_applicable(c, "netlink: %s", strerror(-fd));
	for (int family = 0; family < 2; family++) {
		q.head.nlmsg_len = sizeof(q);
		q.head.nlmsg_type = SOCK_DIAG_BY_FAMILY;
		q.head.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | (exact ? 0 : NLM_F_DUMP));
		q.question.sdiag_family = (uint8_t)(family ? AF_INET6 : AF_INET);
		q.question.sdiag_protocol = IPPROTO_TCP;
		q.question.idiag_ext = 0xff;
		q.question.idiag_states = 0xffffffff;
		q.question.id.idiag_cookie[0] = exact ? (uint32_t)cookie : 0xffffffff;
		q.question.id.idiag_cookie[1] = exact ? (uint32_t)(cookie >> 32) : 0xffffffff;
		if (raw(SYS_sendto, fd, &q, sizeof(q), 0, 0, 0) < 0)
			continue;
		for (end = false; !end && wait_for(fd, POLLIN, 200);) {
			got = raw(SYS_recvfrom, fd, answer, sizeof(answer), 0, 0, 0);
			if (got <= 0)
				break;
			const struct fact *f = scan(answer, (size_t)got);

			if (f) {
				raw(SYS_close, fd);
				return leaked(c, "sock_diag says %s %s", f->kind, f->text);
			}
			struct nlmsghdr *head = (struct nlmsghdr *)answer;

			end = exact || head->nlmsg_type == NLMSG_DONE || head->nlmsg_type == NLMSG_ERROR;
		}
	}
	raw(SYS_close, fd);
	say(c, "sock_diag of the container knows nothing of it");
	return denied(c);
}

static enum outcome diag_all(struct ctx *c)
{
	return diag(c, false);
}

static enum outcome diag_cookie(struct ctx *c)
{
	return diag(c, true);
}

/* A connection that our own listener on the host accepts brings the caller's SYN. */
static enum outcome saved_syn(struct ctx *c)
{
	struct sockaddr_storage sa;
	socklen_t size, got;
	struct in_addr any = { 0 };
	unsigned char syn[512] = { 0 };
	uint16_t port = (uint16_t)(settings.listen_port + (c->serial * 7919u) % 1000);
	int one = 1;
	long result;

	size = host_address(c, &sa, any, port);
	noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	noted(c, "TCP_SAVE_SYN", c_setsockopt(c, IPPROTO_TCP, E_TCP_SAVE_SYN, &one, sizeof(one)));
	if (noted(c, "bind", c_bind(c, &sa, size)) < 0 || noted(c, "listen", c_listen(c)) < 0)
		return denied(c);
	if (!ask(c, "dial %s %u", inet_ntoa(settings.canary), port))
		return denied(c);
	result = c_accept(c);
	if (noted(c, "accept", result) < 0)
		return denied(c);
	got = sizeof(syn);
	result = raw(SYS_getsockopt, result, IPPROTO_TCP, E_TCP_SAVED_SYN, syn, &got);
	if (noted(c, "TCP_SAVED_SYN", result) < 0)
		return denied(c);
	return scanned(c, "TCP_SAVED_SYN", syn, got);
}

static enum outcome map_socket(struct ctx *c)
{
	long result;

	if (!c_needs_fd(c))
		return denied(c);
	result = raw(SYS_mmap, 0, 4096, PROT_READ, MAP_SHARED, c->fd, 0);
	if (result < 0 && result > -4096)
		return denied_by(c, "mmap", result);
	return leaked(c, "pages of the host's receive path (TCP_ZEROCOPY_RECEIVE)");
}

/* io_uring's own ways to ask. */
static enum outcome ring_name(struct ctx *c)
{
	struct sockaddr_storage sa = { 0 };
	int size = sizeof(sa);
	struct sqe s = { .opcode = E_OP_URING_CMD,
			 .off = E_CMD_GETSOCKNAME,
			 .addr = (uintptr_t)&sa,
			 .addr3 = (uintptr_t)&size };
	long result;

	if (!need_ring(c))
		return not_applicable(c, "io_uring: %s", strerror(errno));
	result = ring_run(c, &s);
	if (result == -EOPNOTSUPP || result == -EINVAL)
		return not_applicable(c, "no SOCKET_URING_OP_GETSOCKNAME on this kernel");
	if (result < 0)
		return denied_by(c, "URING_CMD", result);
	return scanned(c, "SOCKET_URING_OP_GETSOCKNAME", &sa, sizeof(sa));
}

static enum outcome ring_option(struct ctx *c)
{
	struct sockaddr_storage sa = { 0 };
	struct sqe s = { .opcode = E_OP_URING_CMD,
			 .off = E_CMD_GETSOCKOPT,
			 .addr = (uint64_t)SOL_SOCKET | (uint64_t)E_SO_PEERNAME << 32,
			 .file_index = 16,
			 .addr3 = (uintptr_t)&sa };
	long result;

	if (!need_ring(c))
		return not_applicable(c, "io_uring: %s", strerror(errno));
	result = ring_run(c, &s);
	if (result == -EOPNOTSUPP)
		return not_applicable(c, "no SOCKET_URING_OP_GETSOCKOPT before Linux 6.7");
	if (result < 0)
		return denied_by(c, "URING_CMD", result);
	return scanned(c, "SO_PEERNAME", &sa, sizeof(sa));
}

static enum outcome ring_received(struct ctx *c)
{
	char data[64];
	unsigned char control[512] = { 0 };
	struct sockaddr_storage sa = { 0 };
	struct iovec part = { data, sizeof(data) };
	struct msghdr message = { .msg_name = &sa,
				  .msg_namelen = sizeof(sa),
				  .msg_iov = &part,
				  .msg_iovlen = 1,
				  .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct sqe s = { .opcode = E_OP_RECVMSG, .addr = (uintptr_t)&message, .len = 1 };
	int one = 1;
	long result;

	if (!need_ring(c))
		return not_applicable(c, "io_uring: %s", strerror(errno));
	c_setsockopt(c, IPPROTO_IP, E_IP_PKTINFO, &one, sizeof(one));
	c_setsockopt(c, SOL_SOCKET, E_SO_TIMESTAMP, &one, sizeof(one));
	c_write(c, "hello\n", 6);
	result = ring_run(c, &s);
	if (result < 0)
		return denied_by(c, "OP_RECVMSG", result);
	if (message.msg_controllen && control[0])
		return leaked(c, "a control message: when the host received the packet");
	if (scan(control, sizeof(control)))
		return scanned(c, "OP_RECVMSG", control, sizeof(control));
	return scanned(c, "OP_RECVMSG", &sa, sizeof(sa));
}

static enum outcome ring_error_queue(struct ctx *c)
{
	unsigned flags = E_TX_SOFTWARE | E_TS_SOFTWARE | E_TS_OPT_CMSG;
	char data[64];
	unsigned char control[512] = { 0 };
	struct iovec part = { data, sizeof(data) };
	struct msghdr message = { .msg_iov = &part,
				  .msg_iovlen = 1,
				  .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct sqe s = { .opcode = E_OP_RECVMSG,
			 .addr = (uintptr_t)&message,
			 .len = 1,
			 .op_flags = MSG_ERRQUEUE | MSG_DONTWAIT };
	long result;

	if (!need_ring(c))
		return not_applicable(c, "io_uring: %s", strerror(errno));
	noted(c, "SO_TIMESTAMPING",
	      c_setsockopt(c, SOL_SOCKET, E_SO_TIMESTAMPING, &flags, sizeof(flags)));
	c_write(c, "hello\n", 6);
	if (c->fd >= 0)
		wait_for(c->fd, POLLERR, 100);
	result = ring_run(c, &s);
	if (result < 0)
		return denied_by(c, "OP_RECVMSG", result);
	return leaked(c, "the error queue: when a packet left the host");
}

/* The same questions by the kernel's 32-bit entry. */
static enum outcome compat_name(struct ctx *c)
{
	unsigned char *page = low_memory(4096);
	uint32_t *size;
	long result;

	if (!c_needs_fd(c))
		return denied(c);
	if (!page || !compat_there())
		return not_applicable(c, "no 32-bit system calls here");
	size = (uint32_t *)(page + 1024);
	*size = 128;
	result = compat_call(c->attempt->option, c->fd, (long)page, (long)size, 0, 0);
	if (result < 0)
		return denied_by(c, "by the 32-bit entry", result);
	return scanned(c, "by the 32-bit entry", page, 128);
}

static enum outcome compat_option(struct ctx *c)
{
	unsigned char *page = low_memory(4096);
	uint32_t *size;
	long result;

	if (!c_needs_fd(c))
		return denied(c);
	if (!page || !compat_there())
		return not_applicable(c, "no 32-bit system calls here");
	size = (uint32_t *)(page + 1024);
	*size = c->family == AF_INET6 ? 28 : 16;
	result = compat_call(365, c->fd, SOL_SOCKET, E_SO_PEERNAME, (long)page, (long)size);
	if (result < 0)
		return denied_by(c, "getsockopt by the 32-bit entry", result);
	return scanned(c, "SO_PEERNAME by the 32-bit entry", page, 128);
}

static enum outcome compat_interfaces(struct ctx *c)
{
	unsigned char *page = low_memory(4096);
	uint32_t *question;
	long result;

	if (!c_needs_fd(c))
		return denied(c);
	if (!page || !compat_there())
		return not_applicable(c, "no 32-bit system calls here");
	/* struct compat_ifconf: length, pointer */
	question = (uint32_t *)page;
	question[0] = 2048;
	question[1] = (uint32_t)(uintptr_t)(page + 1024);
	result = compat_call(54, c->fd, E_SIOCGIFCONF, (long)page, 0, 0);
	if (result < 0)
		return denied_by(c, "ioctl by the 32-bit entry", result);
	return scanned(c, "SIOCGIFCONF by the 32-bit entry", page + 1024, 2048);
}

static const uint32_t bridges[] = { 1 /* BRCTL_GET_BRIDGES */, 0, 0, 0 };

const struct attempt learn_attempts[] = {
	{ "getsockname", "learn", "the host's address and port", get_name },
	{ "getpeername", "learn", "the other host's address and port", get_peer },
	{ "so-peername", "learn", "the other host's address (SO_PEERNAME)", peer_name_option },
	{ "packet-options", "learn", "the host's address (IP_PKTOPTIONS)", packet_options },
	{ "packet-options6", "learn", "the host's address (IPV6_2292PKTOPTIONS)", packet_options6, .flags = IP6 },
	{ "interface-by-index", "learn", "names of interfaces (SO_BINDTOIFINDEX, then SO_BINDTODEVICE)", interface_by_index },
	{ "interface-by-name", "learn", "whether an interface exists (SO_BINDTODEVICE)", interface_by_name },
	{ "bound-device", "learn", "the interface that the router bound the socket to", get_option, SOL_SOCKET, E_SO_BINDTODEVICE, 16, NONZERO },
	{ "bound-index", "learn", "the same as a number (SO_BINDTOIFINDEX)", get_option, SOL_SOCKET, E_SO_BINDTOIFINDEX, 4, NONZERO },
	{ "napi-id", "learn", "the queue of the network card (SO_INCOMING_NAPI_ID)", get_option, SOL_SOCKET, E_SO_INCOMING_NAPI_ID, 4, NONZERO },
	{ "serving-cpu", "learn", "the CPU that serves the card (SO_INCOMING_CPU)", get_option, SOL_SOCKET, E_SO_INCOMING_CPU, 4, ANSWER },
	{ "original-dst", "learn", "addresses before the host's NAT (SO_ORIGINAL_DST)", get_option, IPPROTO_IP, E_SO_ORIGINAL_DST, 16, ANSWER },
	{ "original-dst6", "learn", "the same for IPv6", get_option, IPPROTO_IPV6, E_SO_ORIGINAL_DST, 28, ANSWER | IP6 },
	{ "iptables", "learn", "the host's packet filter (IPT_SO_GET_INFO)", get_option, IPPROTO_IP, E_IPT_SO_GET_INFO, 84, ANSWER, "filter", 7 },
	{ "ip6tables", "learn", "the same for IPv6", get_option, IPPROTO_IPV6, E_IP6T_SO_GET_INFO, 84, ANSWER | IP6, "filter", 7 },
	{ "ipvs", "learn", "the host's load balancer (IP_VS_SO_GET_INFO)", get_option, IPPROTO_IP, E_IP_VS_SO_GET_INFO, 16, ANSWER },
	{ "path-mtu", "learn", "the MTU of the host's path (IP_MTU)", get_option, IPPROTO_IP, E_IP_MTU, 4, NONZERO },
	{ "path-mtu6", "learn", "the same (IPV6_MTU)", get_option, IPPROTO_IPV6, E_IPV6_MTU, 4, NONZERO | IP6 },
	{ "path-mtu6-info", "learn", "the same with an address (IPV6_PATHMTU)", get_option, IPPROTO_IPV6, E_IPV6_PATHMTU, 32, NONZERO | IP6 },
	{ "flow-labels", "learn", "flow labels of the host (IPV6_FLOWLABEL_MGR)", get_option, IPPROTO_IPV6, E_IPV6_FLOWLABEL_MGR, 32, ANSWER | IP6 },
	{ "tcp-info", "learn", "an address in TCP_INFO (which is allowed: MSS, round trip, counters)", get_option, IPPROTO_TCP, E_TCP_INFO, 0 },
	{ "congestion-info", "learn", "the congestion control's view of the path (TCP_CC_INFO)", congestion_info },
	{ "tcp-clock", "learn", "the host's TCP clock (TCP_TIMESTAMP)", get_option, IPPROTO_TCP, E_TCP_TIMESTAMP, 4, NONZERO },
	{ "saved-syn", "learn", "headers of the host network by a listener of ours (TCP_SAVE_SYN)", saved_syn },
	{ "saved-syn-get", "learn", "headers of this connection's SYN (TCP_SAVED_SYN)", get_option, IPPROTO_TCP, E_TCP_SAVED_SYN, 0, NONZERO },
	{ "fastopen-secret", "learn", "the secret under which the host makes TFO cookies (TCP_FASTOPEN_KEY)", get_option, IPPROTO_TCP, E_TCP_FASTOPEN_KEY, 32, NONZERO },
	{ "tcp-ao-keys", "learn", "keys of TCP-AO (TCP_AO_GET_KEYS)", get_option, IPPROTO_TCP, E_TCP_AO_GET_KEYS, 184, ANSWER },
	{ "tcp-ao-info", "learn", "state of TCP-AO (TCP_AO_INFO)", get_option, IPPROTO_TCP, E_TCP_AO_INFO, 0, ANSWER },
	{ "repair-queue", "learn", "sequence numbers (TCP_QUEUE_SEQ)", get_option, IPPROTO_TCP, E_TCP_QUEUE_SEQ, 4, ANSWER },
	{ "repair-windows", "learn", "windows of the connection (TCP_REPAIR_WINDOW)", get_option, IPPROTO_TCP, E_TCP_REPAIR_WINDOW, 20, ANSWER },
	{ "zerocopy-receive", "learn", "the host's receive path (TCP_ZEROCOPY_RECEIVE)", get_option, IPPROTO_TCP, E_TCP_ZEROCOPY_RECEIVE, 64, ANSWER },
	{ "map-socket", "learn", "pages of the host's receive path (mmap)", map_socket },
	{ "peer-credentials", "learn", "who made the socket (SO_PEERCRED)", get_option, SOL_SOCKET, E_SO_PEERCRED, 12, 0 },
	{ "peer-label", "learn", "the security label of the peer (SO_PEERSEC)", get_option, SOL_SOCKET, E_SO_PEERSEC, 256, ANSWER },
	{ "peer-groups", "learn", "groups of who made the socket (SO_PEERGROUPS)", get_option, SOL_SOCKET, E_SO_PEERGROUPS, 256, ANSWER },
	{ "peer-pidfd", "learn", "a handle on who made the socket (SO_PEERPIDFD)", get_option, SOL_SOCKET, E_SO_PEERPIDFD, 4, ANSWER },
	{ "memory-info", "learn", "memory that the host has given to the socket (SO_MEMINFO)", get_option, SOL_SOCKET, E_SO_MEMINFO, 64, NONZERO },
	{ "filter-get", "learn", "the filter that the host attached (SO_GET_FILTER)", get_option, SOL_SOCKET, E_SO_ATTACH_FILTER, 64, NONZERO },
	{ "mark-get", "learn", "the class that the host gave us (SO_MARK)", get_option, SOL_SOCKET, E_SO_MARK, 4, NONZERO },
	{ "tclass-get", "learn", "the class that the host gave us (IP_TOS)", get_option, IPPROTO_IP, E_IP_TOS, 4, NONZERO },
	{ "ip-options-get", "learn", "a route in IP options (IP_OPTIONS)", get_option, IPPROTO_IP, E_IP_OPTIONS, 64, NONZERO },
	{ "multicast-interface", "learn", "an interface's address (IP_MULTICAST_IF)", get_option, IPPROTO_IP, E_IP_MULTICAST_IF, 16, NONZERO },
	{ "filter-address", "learn", "addresses in packet headers, bit by bit (SO_ATTACH_FILTER)", filter_address },
	{ "recvmsg-name", "learn", "an address in msg_name", received_name },
	{ "recvmsg-control", "learn", "an address in control messages (IP_PKTINFO and others)", received_control },
	{ "stamp-transmit", "learn", "interface and time of a packet (SO_TIMESTAMPING, MSG_ERRQUEUE)", stamped },
	{ "stamp-receive", "learn", "time of a packet's arrival at the host (SO_TIMESTAMPNS)", stamped_receive },
	{ "zerocopy-code", "learn", "whether the peer is on this host (MSG_ZEROCOPY)", zerocopy },
	{ "icmp-errors", "learn", "routers of the host network (IP_RECVERR, IP_TTL)", icmp_errors },
	{ "descriptor-info", "learn", "an address in /proc/self/fdinfo", descriptor_info },
	{ "descriptor-open", "learn", "the socket opened anew through /proc/self/fd", descriptor_open },
	{ "descriptor-link", "learn", "an address in the link of /proc/self/fd", descriptor_link },
	{ "attributes", "learn", "a fact in the socket's extended attributes", attributes },
	{ "proc-tables", "learn", "the socket in the container's own /proc/net", proc_tables },
	{ "diag-all", "learn", "the socket in the container's own sock_diag", diag_all },
	{ "diag-cookie", "learn", "the socket by its cookie in sock_diag", diag_cookie },
	{ "ioctl-conf", "learn", "all addresses of the host (SIOCGIFCONF)", interface_list },
	{ "ioctl-name", "learn", "names of all interfaces (SIOCGIFNAME)", interface_names },
	{ "ioctl-index", "learn", "an interface's number (SIOCGIFINDEX)", interface_question, 0, E_SIOCGIFINDEX },
	{ "ioctl-address", "learn", "an interface's address (SIOCGIFADDR)", interface_question, 0, E_SIOCGIFADDR },
	{ "ioctl-dstaddr", "learn", "the other end of a link (SIOCGIFDSTADDR)", interface_question, 0, E_SIOCGIFDSTADDR },
	{ "ioctl-broadcast", "learn", "a broadcast address (SIOCGIFBRDADDR)", interface_question, 0, E_SIOCGIFBRDADDR },
	{ "ioctl-netmask", "learn", "a netmask (SIOCGIFNETMASK)", interface_question, 0, E_SIOCGIFNETMASK },
	{ "ioctl-hardware", "learn", "a hardware address (SIOCGIFHWADDR)", interface_question, 0, E_SIOCGIFHWADDR },
	{ "ioctl-flags", "learn", "an interface's state (SIOCGIFFLAGS)", interface_question, 0, E_SIOCGIFFLAGS },
	{ "ioctl-mtu", "learn", "an interface's MTU (SIOCGIFMTU)", interface_question, 0, E_SIOCGIFMTU },
	{ "ioctl-metric", "learn", "an interface's metric (SIOCGIFMETRIC)", interface_question, 0, E_SIOCGIFMETRIC },
	{ "ioctl-map", "learn", "an interface's hardware resources (SIOCGIFMAP)", interface_question, 0, E_SIOCGIFMAP },
	{ "ioctl-queue", "learn", "an interface's queue length (SIOCGIFTXQLEN)", interface_question, 0, E_SIOCGIFTXQLEN },
	{ "ioctl-ethtool", "learn", "an interface's driver (SIOCETHTOOL)", interface_question, 0, E_SIOCETHTOOL, 3, ANSWER },
	{ "ioctl-mii", "learn", "an interface's line (SIOCGMIIPHY)", interface_question, 0, E_SIOCGMIIPHY },
	{ "ioctl-stamps", "learn", "an interface's clock (SIOCGHWTSTAMP)", interface_question, 0, E_SIOCGHWTSTAMP, 0, ANSWER },
	{ "ioctl-bond", "learn", "the host's bonds (SIOCBONDINFOQUERY)", interface_question, 0, E_SIOCBONDINFOQUERY, 0, ANSWER },
	{ "ioctl-wireless", "learn", "the host's wireless (SIOCGIWNAME)", interface_question, 0, E_SIOCGIWNAME },
	{ "ioctl-private", "learn", "a driver's private answers (SIOCDEVPRIVATE)", interface_question, 0, E_SIOCDEVPRIVATE, 0, ANSWER },
	{ "ioctl-neighbour", "learn", "the neighbour table (SIOCGARP)", neighbour },
	{ "ioctl-bridges", "learn", "the host's bridges (SIOCGIFBR)", ioctl_answer, 0, E_SIOCGIFBR, 0, ANSWER, bridges, sizeof(bridges) },
	{ "ioctl-vlans", "learn", "the host's VLANs (SIOCGIFVLAN)", ioctl_answer, 0, E_SIOCGIFVLAN, 0, ANSWER },
	{ "ioctl-stamp", "learn", "time of the last packet (SIOCGSTAMP)", ioctl_answer, 0, E_SIOCGSTAMP, 0, ANSWER },
	{ "ioctl-multicast", "learn", "the host's multicast routing (SIOCGETVIFCNT)", ioctl_answer, 0, LINUX_SIOCPROTOPRIVATE, 0, ANSWER },
	{ "namespace-handle", "learn", "the host's network namespace itself (SIOCGSKNS, setns)", namespace_handle },
	{ "uring-getsockname", "learn", "the host's address by SOCKET_URING_OP_GETSOCKNAME", ring_name },
	{ "uring-getsockopt", "learn", "the other host's address by SOCKET_URING_OP_GETSOCKOPT", ring_option },
	{ "uring-recvmsg", "learn", "control messages by IORING_OP_RECVMSG", ring_received },
	{ "uring-errqueue", "learn", "the error queue by IORING_OP_RECVMSG", ring_error_queue },
	{ "compat-getsockname", "learn", "getsockname by the kernel's 32-bit entry", compat_name, 0, 367 },
	{ "compat-getpeername", "learn", "getpeername by the kernel's 32-bit entry", compat_name, 0, 368 },
	{ "compat-getsockopt", "learn", "SO_PEERNAME by the kernel's 32-bit entry", compat_option },
	{ "compat-ioctl", "learn", "SIOCGIFCONF by the kernel's 32-bit entry", compat_interfaces },
	{ 0 },
};
