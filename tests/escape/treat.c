/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Change how the host treats the connection, or the host itself. An option counts as
 * changed if the kernel reads back another value than before; where it cannot be read
 * (ANY) setsockopt's 0 counts.
 */
#include "escape.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <poll.h>
#include <sys/stat.h>

static enum outcome set_option(struct ctx *c)
{
	const struct attempt *a = c->attempt;
	unsigned char before[64] = { 0 }, after[64] = { 0 };
	socklen_t size_before = sizeof(before), size_after = sizeof(after);
	int value = (int)a->value;
	const void *in = a->data ? a->data : &value;
	socklen_t size = a->data ? (socklen_t)a->size : sizeof(value);
	long result, get;

	if (!(a->flags & ANY))
		c_getsockopt(c, a->level, a->option, before, &size_before);
	result = c_setsockopt(c, a->level, a->option, in, size);
	if (result < 0)
		return denied_by(c, "setsockopt", result);
	if (a->flags & ANY)
		return succeeded(c, "set");
	get = c_getsockopt(c, a->level, a->option, after, &size_after);
	if (get < 0)
		return succeeded(c, "set; reading it back: %s", strerror((int)-get));
	if (memcmp(before, after, sizeof(after)) == 0) {
		say(c, "set, but nothing changed");
		return denied(c);
	}
	return succeeded(c, "was %02x%02x%02x%02x, is %02x%02x%02x%02x", before[3], before[2], before[1],
			 before[0], after[3], after[2], after[1], after[0]);
}

/* SO_PRIORITY is reset by IP_TOS: the class that the router gave is gone. */
static enum outcome priority_by_tos(struct ctx *c)
{
	int tos = 0x10, before = 0, after = 0;
	socklen_t size = sizeof(before);
	long result;

	c_getsockopt(c, SOL_SOCKET, E_SO_PRIORITY, &before, &size);
	result = c_setsockopt(c, IPPROTO_IP, E_IP_TOS, &tos, sizeof(tos));
	if (result < 0)
		return denied_by(c, "IP_TOS", result);
	size = sizeof(after);
	result = c_getsockopt(c, SOL_SOCKET, E_SO_PRIORITY, &after, &size);
	if (result < 0 || before != after)
		return succeeded(c, "the priority was %d, is %d", before, after);
	return denied(c);
}

static enum outcome attach_filter(struct ctx *c)
{
	struct sock_filter code[] = { BPF_STMT(BPF_RET | BPF_K, 0x7fffffff) };
	struct sock_fprog program = { 1, code };
	long result = c_setsockopt(c, SOL_SOCKET, (int)c->attempt->option, &program, sizeof(program));

	if (result < 0)
		return denied_by(c, "setsockopt", result);
	return succeeded(c, "a filter of ours judges the packets");
}

static enum outcome detach_filter(struct ctx *c)
{
	int nothing = 0;
	long result = c_setsockopt(c, SOL_SOCKET, E_SO_DETACH_FILTER, &nothing, sizeof(nothing));

	if (result == 0)
		return succeeded(c, "a filter is gone");
	/* ENOENT: there was none, so nobody held us back. */
	return result == -ENOENT ? succeeded(c, "allowed, there is no filter") :
				   denied_by(c, "SO_DETACH_FILTER", result);
}

static long bpf(int command, union bpf_attr *attributes, size_t size)
{
	return raw(SYS_bpf, command, attributes, size);
}

static long bpf_filter(void)
{
	static const struct bpf_insn code[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = -1 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr a;

	memset(&a, 0, sizeof(a));
	a.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
	a.insns = (uintptr_t)code;
	a.insn_cnt = 2;
	a.license = (uintptr_t) "GPL";
	return bpf(BPF_PROG_LOAD, &a, sizeof(a));
}

static enum outcome attach_bpf(struct ctx *c)
{
	long program = bpf_filter(), result;
	int fd = (int)program;

	if (program < 0)
		/* Still ask: the refusal must not hang on the program. */
		fd = 0;
	result = c_setsockopt(c, SOL_SOCKET, (int)c->attempt->option, &fd, sizeof(fd));
	if (result == 0)
		return succeeded(c, "an eBPF program of ours judges the packets");
	noted(c, "setsockopt", result);
	return program < 0 && result != -EPERM ?
		       not_applicable(c, "BPF_PROG_LOAD: %s", strerror((int)-program)) :
		       denied(c);
}

static enum outcome in_map(struct ctx *c)
{
	union bpf_attr a;
	uint32_t key = 0, value = (uint32_t)c->fd;
	uint64_t wide = (uint64_t)c->fd;
	long map, result;
	bool reuse = c->attempt->option == BPF_MAP_TYPE_REUSEPORT_SOCKARRAY;

	if (!c_needs_fd(c))
		return denied(c);
	memset(&a, 0, sizeof(a));
	a.map_type = (uint32_t)c->attempt->option;
	a.key_size = 4;
	a.value_size = reuse ? 8 : 4;
	a.max_entries = 1;
	map = bpf(BPF_MAP_CREATE, &a, sizeof(a));
	if (map < 0)
		return denied_by(c, "BPF_MAP_CREATE", map);
	memset(&a, 0, sizeof(a));
	a.map_fd = (uint32_t)map;
	a.key = (uintptr_t)&key;
	a.value = reuse ? (uintptr_t)&wide : (uintptr_t)&value;
	result = bpf(BPF_MAP_UPDATE_ELEM, &a, sizeof(a));
	if (result < 0)
		return denied_by(c, "BPF_MAP_UPDATE_ELEM", result);
	return succeeded(c, "a BPF map of ours holds the socket and its operations");
}

/* A kernel connection multiplexor keeps and drives the socket by a descriptor of its own. */
static enum outcome multiplexed(struct ctx *c)
{
	int own = (int)raw(SYS_socket, E_AF_KCM, SOCK_DGRAM, 0);
	struct {
		int fd, program;
	} attach = { c->fd, -1 };
	long result;

	if (!c_needs_fd(c))
		return denied(c);
	if (own < 0)
		return not_applicable(c, "no AF_KCM here");
	attach.program = (int)bpf_filter();
	result = raw(SYS_ioctl, own, E_SIOCKCMATTACH, &attach);
	if (result < 0) {
		noted(c, "SIOCKCMATTACH", result);
		return attach.program < 0 ? not_applicable(c, "no BPF program to attach with") : denied(c);
	}
	return succeeded(c, "a KCM socket drives it");
}

/* A layer above TCP brings operations of its own. */
static enum outcome upper_layer(struct ctx *c)
{
	const char *name = c->attempt->data;
	struct {
		uint16_t version, cipher;
		unsigned char rest[36];
	} keys = { 0x0303, 51 /* AES-GCM-128 */, { 0 } };
	long result = c_setsockopt(c, IPPROTO_TCP, E_TCP_ULP, name, (socklen_t)c->attempt->size);

	if (result == -ENOENT)
		return not_applicable(c, "%s is not loaded, and nobody here may load it", name);
	if (result < 0)
		return denied_by(c, "TCP_ULP", result);
	if (strcmp(name, "tls") == 0 && c_setsockopt(c, E_SOL_TLS, 1, &keys, sizeof(keys)) == 0)
		return succeeded(c, "kTLS with keys of ours took the socket over");
	return succeeded(c, "%s took the socket over", name);
}

static enum outcome owner(struct ctx *c)
{
	struct stat before, after;
	long result;

	if (!c_needs_fd(c))
		return denied(c);
	raw(SYS_fstat, c->fd, &before);
	result = raw(SYS_fchown, c->fd, before.st_uid + 12345, -1);
	if (result < 0)
		return denied_by(c, "fchown", result);
	raw(SYS_fstat, c->fd, &after);
	if (before.st_uid == after.st_uid)
		return denied(c);
	return succeeded(c, "the socket's uid, by which the host routes and filters, was %u, is %u",
			 before.st_uid, after.st_uid);
}

/* Control messages of sendmsg: what setsockopt refuses must not come by this door. */
static enum outcome send_control(struct ctx *c)
{
	char control[CMSG_SPACE(8)] = { 0 };
	struct iovec part = { (void *)(uintptr_t) "hello\n", 6 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control };
	struct cmsghdr *head = (struct cmsghdr *)control;
	uint64_t value = (uint64_t)c->attempt->value;
	size_t size = c->attempt->size;
	long result;

	head->cmsg_level = (int)c->attempt->level;
	head->cmsg_type = (int)c->attempt->option;
	head->cmsg_len = CMSG_LEN(size);
	memcpy(CMSG_DATA(head), &value, size);
	message.msg_controllen = CMSG_SPACE(size);
	result = c_sendmsg(c, &message, 0);
	if (result < 0)
		return denied_by(c, "sendmsg", result);
	if (c->attempt->flags & ANY)
		return succeeded(c, "the kernel took the control message");
	say(c, "sent, the control message ignored");
	return denied(c);
}

static enum outcome send_zerocopy(struct ctx *c)
{
	static char page[8192];
	int one = 1;
	long result;

	noted(c, "SO_ZEROCOPY", c_setsockopt(c, SOL_SOCKET, E_SO_ZEROCOPY, &one, sizeof(one)));
	result = c_sendto(c, page, sizeof(page), 0x4000000 /* MSG_ZEROCOPY */, NULL, 0);
	if (result < 0)
		return denied_by(c, "send(MSG_ZEROCOPY)", result);
	return succeeded(c, "pages of ours in the host's queues");
}

static enum outcome ring_set(struct ctx *c)
{
	int value = 0x10, back = 0;
	socklen_t size = sizeof(back);
	struct sqe s = { .opcode = E_OP_URING_CMD,
			 .off = E_CMD_SETSOCKOPT,
			 .addr = (uint64_t)IPPROTO_IP | (uint64_t)E_IP_TOS << 32,
			 .file_index = sizeof(value),
			 .addr3 = (uintptr_t)&value };
	long result;

	if (!need_ring(c))
		return not_applicable(c, "io_uring: %s", strerror(errno));
	result = ring_run(c, &s);
	if (result == -EOPNOTSUPP)
		return not_applicable(c, "no SOCKET_URING_OP_SETSOCKOPT before Linux 6.7");
	if (result < 0)
		return denied_by(c, "URING_CMD", result);
	c_getsockopt(c, IPPROTO_IP, E_IP_TOS, &back, &size);
	return succeeded(c, "IP_TOS is %d", back);
}

static enum outcome compat_set(struct ctx *c)
{
	unsigned char *page = low_memory(4096);
	int value = 0x10;
	long result;

	if (!c_needs_fd(c))
		return denied(c);
	if (!page || !compat_there())
		return not_applicable(c, "no 32-bit system calls here");
	memcpy(page, &value, sizeof(value));
	result = compat_call(366, c->fd, IPPROTO_IP, E_IP_TOS, (long)page, 4);
	if (result < 0)
		return denied_by(c, "setsockopt by the 32-bit entry", result);
	return succeeded(c, "IP_TOS is set");
}

/* Change the host itself through the socket's namespace, and undo it. */
static enum outcome add_bridge(struct ctx *c)
{
	char name[IFNAMSIZ] = "slim-escape0";
	long result = c_ioctl(c, E_SIOCBRADDBR, name);

	if (result < 0)
		return result == -ENOPKG || result == -EINVAL ?
			       not_applicable(c, "no bridges here") :
			       denied_by(c, "SIOCBRADDBR", result);
	c_ioctl(c, E_SIOCBRDELBR, name);
	return succeeded(c, "a bridge on the host (removed)");
}

static enum outcome add_neighbour(struct ctx *c)
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
		q.protocol.sin_addr.s_addr = settings.canary.s_addr | htonl(0xfa);
		q.hardware.sa_family = 1; /* ARPHRD_ETHER */
		q.hardware.sa_data[0] = 2;
		q.flags = 6; /* ATF_COM | ATF_PERM */
		snprintf(q.device, sizeof(q.device), "%.15s", settings.facts[i].text);
		result = c_ioctl(c, E_SIOCSARP, &q);
		if (result >= 0) {
			c_ioctl(c, E_SIOCDARP, &q);
			return succeeded(c, "a neighbour of the host's (removed)");
		}
	}
	return denied_by(c, "SIOCSARP", result);
}

static enum outcome add_route(struct ctx *c)
{
	/* struct rtentry, as far as it is used */
	struct {
		unsigned long pad1;
		struct sockaddr destination, gateway, mask;
		unsigned short flags;
		short pad2;
		unsigned long pad3;
		void *pad4;
		short metric;
		char *device;
		unsigned long mtu, window;
		unsigned short irtt;
	} q;
	struct sockaddr_in *to = (struct sockaddr_in *)&q.destination;
	char lo[] = "lo";
	long result;

	memset(&q, 0, sizeof(q));
	to->sin_family = AF_INET;
	inet_pton(AF_INET, "203.0.113.99", &to->sin_addr);
	q.flags = 5; /* RTF_UP | RTF_HOST */
	q.device = lo;
	result = c_ioctl(c, E_SIOCADDRT, &q);
	if (result < 0)
		return denied_by(c, "SIOCADDRT", result);
	c_ioctl(c, E_SIOCDELRT, &q);
	return succeeded(c, "a route of the host's (removed)");
}

static enum outcome replace_tables(struct ctx *c)
{
	char blob[256] = "filter";
	long result = c_setsockopt(c, IPPROTO_IP, 64 /* IPT_SO_SET_REPLACE */, blob, sizeof(blob));

	if (result == 0)
		return succeeded(c, "the host's packet filter is replaced");
	return denied_by(c, "IPT_SO_SET_REPLACE", result);
}

/* Values that are not a plain int. */
static const uint64_t pacing = 12345678;
static const char reno[] = "reno", cubic[] = "cubic", bbr[] = "bbr";
static const char tls[] = "tls", mptcp[] = "mptcp", smc[] = "smc", espintcp[] = "espintcp";
static const struct {
	int clock;
	uint32_t flags;
} txtime = { 1 /* CLOCK_MONOTONIC */, 0 };
static const unsigned char record_route[8] = { 7, 7, 4, 0, 0, 0, 0, 0 };
static const unsigned char source_route[8] = { 131, 7, 4, 203, 0, 113, 1, 0 };
static const uint32_t loopback_index = 0x01000000; /* interface 1, network order */
static const struct {
	unsigned char group[4], local[4];
	int index;
} membership = { { 239, 1, 2, 3 }, { 0 }, 0 };
static const struct {
	unsigned char address[16];
	int index;
} membership6 = { { 0xff, 2, [15] = 0x77 }, 1 }, anycast6 = { { 0x20, 1, 0x0d, 0xb8, [15] = 1 }, 1 },
	packet_info6 = { { [10] = 0xff, 0xff, 203, 0, 113, 5 }, 1 };
static const struct {
	uint8_t next, length, type, left;
	uint32_t reserved;
	unsigned char address[16];
} routing = { 0, 2, 2, 1, 0, { 0x20, 1, 0x0d, 0xb8, [15] = 1 } };
static const unsigned char destination_options[8] = { 0, 0, 1, 4, 0, 0, 0, 0 };
static const struct {
	unsigned char destination[16];
	uint32_t label;
	uint8_t action, share;
	uint16_t flags, expires, linger;
	uint32_t pad;
} flow = { { [10] = 0xff, 0xff, 203, 0, 113, 5 }, 0, 0, 255, 1, 0, 0, 0 };
static const struct {
	struct sockaddr_storage peer;
	uint8_t flags, prefix;
	uint16_t size;
	int index;
	uint8_t key[80];
} md5 = { { .ss_family = AF_INET }, 0, 0, 4, 0, "key" };
static const struct {
	uint8_t direction, share, action, flags;
	unsigned char rest[164];
} policy = { 0 };
static const uint32_t ports = 40000u << 16 | 30000u;
static const uint32_t fastopen_key[4] = { 1, 2, 3, 4 };
static const struct {
	uint32_t wl1, wnd, max, rcv, wup;
} window = { 1, 65535, 65535, 65535, 1 };

#define DATA(name) .data = &name, .size = sizeof(name)
#define TEXT(name) .data = name, .size = sizeof(name) - 1
#define SET(label, gives, level_, option_, value_, flags_) \
	{ label, "treat", gives, set_option, level_, option_, value_, flags_ }
#define PUT(label, gives, level_, option_, flags_, ...) \
	{ label, "treat", gives, set_option, .level = level_, .option = option_, .flags = flags_, __VA_ARGS__ }

const struct attempt treat_attempts[] = {
	SET("mark", "another class, route or firewall rule (SO_MARK)", SOL_SOCKET, E_SO_MARK, 77, 0),
	SET("priority", "another queue of the network card (SO_PRIORITY)", SOL_SOCKET, E_SO_PRIORITY, 6, 0),
	{ "priority-by-tos", "treat", "the priority that the router set, undone by IP_TOS", priority_by_tos },
	PUT("pacing-rate", "a higher rate than the router set (SO_MAX_PACING_RATE)", SOL_SOCKET, E_SO_MAX_PACING_RATE, 0, DATA(pacing)),
	SET("bind-index", "another interface (SO_BINDTOIFINDEX)", SOL_SOCKET, E_SO_BINDTOIFINDEX, 1, 0),
	SET("dont-route", "past the host's routing (SO_DONTROUTE)", SOL_SOCKET, E_SO_DONTROUTE, 1, 0),
	SET("busy-poll", "CPU time of the host's card (SO_BUSY_POLL)", SOL_SOCKET, E_SO_BUSY_POLL, 1000, 0),
	SET("prefer-busy-poll", "the same (SO_PREFER_BUSY_POLL)", SOL_SOCKET, E_SO_PREFER_BUSY_POLL, 1, 0),
	SET("busy-poll-budget", "the same (SO_BUSY_POLL_BUDGET)", SOL_SOCKET, E_SO_BUSY_POLL_BUDGET, 32, 0),
	PUT("transmit-time", "times of transmission (SO_TXTIME)", SOL_SOCKET, E_SO_TXTIME, 0, DATA(txtime)),
	{ "filter", "treat", "a filter on the packets (SO_ATTACH_FILTER)", attach_filter, 0, E_SO_ATTACH_FILTER },
	{ "filter-detach", "treat", "the host's filter taken off (SO_DETACH_FILTER)", detach_filter },
	SET("filter-lock", "a filter that the host cannot take off (SO_LOCK_FILTER)", SOL_SOCKET, E_SO_LOCK_FILTER, 1, 0),
	{ "filter-bpf", "treat", "an eBPF program on the packets (SO_ATTACH_BPF)", attach_bpf, 0, E_SO_ATTACH_BPF },
	{ "filter-reuseport", "treat", "who gets the host's connections (SO_ATTACH_REUSEPORT_CBPF)", attach_filter, 0, E_SO_ATTACH_REUSEPORT_CBPF },
	{ "filter-reuseport-bpf", "treat", "the same by eBPF (SO_ATTACH_REUSEPORT_EBPF)", attach_bpf, 0, 52 },
	{ "bpf-sockmap", "treat", "the socket redirected by a BPF map (BPF_MAP_TYPE_SOCKMAP)", in_map, 0, BPF_MAP_TYPE_SOCKMAP },
	{ "bpf-sockhash", "treat", "the same (BPF_MAP_TYPE_SOCKHASH)", in_map, 0, BPF_MAP_TYPE_SOCKHASH },
	{ "bpf-reuseport", "treat", "the same (BPF_MAP_TYPE_REUSEPORT_SOCKARRAY)", in_map, 0, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY },
	SET("receive-buffer-force", "memory beyond the host's bound (SO_RCVBUFFORCE)", SOL_SOCKET, E_SO_RCVBUFFORCE, 1 << 28, ANY),
	SET("send-buffer-force", "the same (SO_SNDBUFFORCE)", SOL_SOCKET, E_SO_SNDBUFFORCE, 1 << 28, ANY),
	SET("reserve-memory", "the host's memory reserved (SO_RESERVE_MEM)", SOL_SOCKET, E_SO_RESERVE_MEM, 1 << 20, 0),
	SET("incoming-cpu", "which CPU of the host serves us (SO_INCOMING_CPU)", SOL_SOCKET, E_SO_INCOMING_CPU, 777, 0),
	SET("stamps", "time stamps of the host (SO_TIMESTAMPING)", SOL_SOCKET, E_SO_TIMESTAMPING, E_TX_SOFTWARE | E_TS_SOFTWARE, 0),
	SET("zerocopy", "pages of ours in the host's queues, asked for (SO_ZEROCOPY)", SOL_SOCKET, E_SO_ZEROCOPY, 1, 0),
	{ "zerocopy-send", "treat", "pages of ours in the host's queues (MSG_ZEROCOPY)", send_zerocopy },
	SET("debug", "the kernel's debugging (SO_DEBUG)", SOL_SOCKET, E_SO_DEBUG, 1, 0),
	SET("broadcast", "broadcasts (SO_BROADCAST)", SOL_SOCKET, E_SO_BROADCAST, 1, 0),
	SET("no-checksum", "packets without checksums (SO_NO_CHECK)", SOL_SOCKET, E_SO_NO_CHECK, 1, 0),
	SET("no-frame-check", "frames without checksums (SO_NOFCS)", SOL_SOCKET, E_SO_NOFCS, 1, 0),
	SET("wireless-status", "states of the wireless (SO_WIFI_STATUS)", SOL_SOCKET, E_SO_WIFI_STATUS, 1, 0),
	SET("queue-overflow", "counts of the host's drops (SO_RXQ_OVFL)", SOL_SOCKET, E_SO_RXQ_OVFL, 1, 0),
	SET("error-queue-select", "wake-ups by the error queue (SO_SELECT_ERR_QUEUE)", SOL_SOCKET, E_SO_SELECT_ERR_QUEUE, 1, 0),
	SET("advice", "another path of several (SO_CNX_ADVICE)", SOL_SOCKET, E_SO_CNX_ADVICE, 1, ANY),
	SET("rehash", "another path when packets are lost (SO_TXREHASH)", SOL_SOCKET, E_SO_TXREHASH, 0, 0),
	SET("receive-mark", "marks of the host's firewall (SO_RCVMARK)", SOL_SOCKET, E_SO_RCVMARK, 1, 0),
	SET("buffer-lock", "buffers that the host cannot tune (SO_BUF_LOCK)", SOL_SOCKET, E_SO_BUF_LOCK, 3, 0),
	SET("tos", "another class of service (IP_TOS)", IPPROTO_IP, E_IP_TOS, 0xb8, 0),
	SET("ttl", "how far packets go (IP_TTL)", IPPROTO_IP, E_IP_TTL, 3, 0),
	SET("min-ttl", "which packets are taken (IP_MINTTL)", IPPROTO_IP, E_IP_MINTTL, 1, 0),
	PUT("record-route", "addresses of routers on the way (IP_OPTIONS, record route)", IPPROTO_IP, E_IP_OPTIONS, 0, DATA(record_route)),
	PUT("source-route", "another way (IP_OPTIONS, loose source route)", IPPROTO_IP, E_IP_OPTIONS, 0, DATA(source_route)),
	SET("packet-info", "interface and address of packets (IP_PKTINFO)", IPPROTO_IP, E_IP_PKTINFO, 1, 0),
	SET("mtu-discover", "fragments, or none (IP_MTU_DISCOVER)", IPPROTO_IP, E_IP_MTU_DISCOVER, 3, 0),
	SET("receive-errors", "ICMP errors with addresses (IP_RECVERR)", IPPROTO_IP, E_IP_RECVERR, 1, 0),
	SET("free-bind", "addresses that are not the host's (IP_FREEBIND)", IPPROTO_IP, E_IP_FREEBIND, 1, 0),
	SET("transparent", "the same, and others' packets (IP_TRANSPARENT)", IPPROTO_IP, E_IP_TRANSPARENT, 1, 0),
	SET("late-port", "how ports are chosen (IP_BIND_ADDRESS_NO_PORT)", IPPROTO_IP, E_IP_BIND_ADDRESS_NO_PORT, 1, 0),
	PUT("port-range", "ports beyond the worker's (IP_LOCAL_PORT_RANGE)", IPPROTO_IP, E_IP_LOCAL_PORT_RANGE, 0, DATA(ports)),
	PUT("unicast-interface", "another interface (IP_UNICAST_IF)", IPPROTO_IP, E_IP_UNICAST_IF, 0, DATA(loopback_index)),
	PUT("multicast-join", "multicast groups of the host (IP_ADD_MEMBERSHIP)", IPPROTO_IP, E_IP_ADD_MEMBERSHIP, ANY, DATA(membership)),
	PUT("ipsec-policy", "past the host's IPsec (IP_XFRM_POLICY)", IPPROTO_IP, E_IP_XFRM_POLICY, ANY, DATA(policy)),
	PUT("ipsec-policy-old", "the same (IP_IPSEC_POLICY)", IPPROTO_IP, E_IP_IPSEC_POLICY, ANY, DATA(policy)),
	{ "iptables-replace", "treat", "another packet filter of the host (IPT_SO_SET_REPLACE)", replace_tables, .flags = NO_ADMIN },
	SET("address-form", "another set of operations under the socket (IPV6_ADDRFORM)", IPPROTO_IPV6, E_IPV6_ADDRFORM, AF_INET, IP6 | ANY),
	SET("hops", "how far packets go (IPV6_UNICAST_HOPS)", IPPROTO_IPV6, E_IPV6_UNICAST_HOPS, 3, IP6),
	SET("traffic-class", "another class of service (IPV6_TCLASS)", IPPROTO_IPV6, E_IPV6_TCLASS, 0xb8, IP6),
	PUT("packet-info6", "another source address (IPV6_PKTINFO)", IPPROTO_IPV6, E_IPV6_PKTINFO, IP6 | ANY, DATA(packet_info6)),
	SET("mtu-discover6", "fragments, or none (IPV6_MTU_DISCOVER)", IPPROTO_IPV6, E_IPV6_MTU_DISCOVER, 3, IP6),
	SET("mtu6", "the path's MTU (IPV6_MTU)", IPPROTO_IPV6, E_IPV6_MTU, 1280, IP6 | ANY),
	SET("dont-fragment6", "fragments, or none (IPV6_DONTFRAG)", IPPROTO_IPV6, E_IPV6_DONTFRAG, 1, IP6),
	SET("receive-errors6", "ICMP errors with addresses (IPV6_RECVERR)", IPPROTO_IPV6, E_IPV6_RECVERR, 1, IP6),
	PUT("routing-header", "another way (IPV6_RTHDR)", IPPROTO_IPV6, E_IPV6_RTHDR, IP6 | ANY, DATA(routing)),
	PUT("destination-options", "options in the header (IPV6_DSTOPTS)", IPPROTO_IPV6, E_IPV6_DSTOPTS, IP6 | ANY, DATA(destination_options)),
	PUT("hop-options", "the same (IPV6_HOPOPTS)", IPPROTO_IPV6, E_IPV6_HOPOPTS, IP6 | ANY, DATA(destination_options)),
	PUT("flow-label", "another path of several (IPV6_FLOWLABEL_MGR)", IPPROTO_IPV6, E_IPV6_FLOWLABEL_MGR, IP6 | ANY, DATA(flow)),
	SET("flow-info", "the same (IPV6_FLOWINFO_SEND)", IPPROTO_IPV6, E_IPV6_FLOWINFO_SEND, 1, IP6),
	SET("auto-flow-label", "the same (IPV6_AUTOFLOWLABEL)", IPPROTO_IPV6, E_IPV6_AUTOFLOWLABEL, 0, IP6),
	SET("address-preferences", "which source address (IPV6_ADDR_PREFERENCES)", IPPROTO_IPV6, E_IPV6_ADDR_PREFERENCES, 4, IP6),
	SET("min-hops", "which packets are taken (IPV6_MINHOPCOUNT)", IPPROTO_IPV6, E_IPV6_MINHOPCOUNT, 1, IP6),
	SET("free-bind6", "addresses that are not the host's (IPV6_FREEBIND)", IPPROTO_IPV6, E_IPV6_FREEBIND, 1, IP6),
	SET("transparent6", "the same, and others' packets (IPV6_TRANSPARENT)", IPPROTO_IPV6, E_IPV6_TRANSPARENT, 1, IP6),
	PUT("unicast-interface6", "another interface (IPV6_UNICAST_IF)", IPPROTO_IPV6, E_IPV6_UNICAST_IF, IP6, DATA(loopback_index)),
	PUT("multicast-join6", "multicast groups of the host (IPV6_JOIN_GROUP)", IPPROTO_IPV6, E_IPV6_JOIN_GROUP, IP6 | ANY, DATA(membership6)),
	PUT("anycast-join6", "an anycast address for the host (IPV6_JOIN_ANYCAST)", IPPROTO_IPV6, E_IPV6_JOIN_ANYCAST, IP6 | ANY | NO_ADMIN, DATA(anycast6)),
	PUT("ipsec-policy6", "past the host's IPsec (IPV6_XFRM_POLICY)", IPPROTO_IPV6, E_IPV6_XFRM_POLICY, IP6 | ANY, DATA(policy)),
	PUT("congestion-reno", "another congestion control (TCP_CONGESTION)", IPPROTO_TCP, E_TCP_CONGESTION, 0, TEXT(reno)),
	PUT("congestion-cubic", "the same", IPPROTO_TCP, E_TCP_CONGESTION, 0, TEXT(cubic)),
	PUT("congestion-bbr", "the same, with the kernel's pacing off the host's", IPPROTO_TCP, E_TCP_CONGESTION, 0, TEXT(bbr)),
	{ "layer-tls", "treat", "kTLS in place of the guarded operations (TCP_ULP)", upper_layer, TEXT(tls) },
	{ "layer-mptcp", "treat", "MPTCP in their place (TCP_ULP)", upper_layer, TEXT(mptcp) },
	{ "layer-smc", "treat", "SMC in their place (TCP_ULP)", upper_layer, TEXT(smc) },
	{ "layer-espintcp", "treat", "IPsec in their place (TCP_ULP)", upper_layer, TEXT(espintcp) },
	{ "multiplexor", "treat", "KCM holds and drives the socket (SIOCKCMATTACH)", multiplexed },
	SET("repair", "the connection's state rewritten (TCP_REPAIR)", IPPROTO_TCP, E_TCP_REPAIR, 1, 0),
	PUT("repair-window", "its windows (TCP_REPAIR_WINDOW)", IPPROTO_TCP, E_TCP_REPAIR_WINDOW, ANY, DATA(window)),
	SET("repair-sequence", "its sequence numbers (TCP_QUEUE_SEQ)", IPPROTO_TCP, E_TCP_QUEUE_SEQ, 1, ANY),
	PUT("md5-key", "signatures that break the connection (TCP_MD5SIG)", IPPROTO_TCP, E_TCP_MD5SIG, ANY, DATA(md5)),
	PUT("md5-key-prefix", "the same for a prefix (TCP_MD5SIG_EXT)", IPPROTO_TCP, E_TCP_MD5SIG_EXT, ANY, DATA(md5)),
	SET("max-segment", "the size of segments (TCP_MAXSEG)", IPPROTO_TCP, E_TCP_MAXSEG, 600, ANY),
	SET("window-clamp", "the window (TCP_WINDOW_CLAMP)", IPPROTO_TCP, E_TCP_WINDOW_CLAMP, 40000, 0),
	SET("syn-count", "how long connects try (TCP_SYNCNT)", IPPROTO_TCP, E_TCP_SYNCNT, 2, 0),
	SET("defer-accept", "when a listener wakes (TCP_DEFER_ACCEPT)", IPPROTO_TCP, E_TCP_DEFER_ACCEPT, 30, 0),
	SET("save-syn", "headers kept for later (TCP_SAVE_SYN)", IPPROTO_TCP, E_TCP_SAVE_SYN, 1, 0),
	SET("transmit-delay", "delays (TCP_TX_DELAY)", IPPROTO_TCP, E_TCP_TX_DELAY, 1000, 0),
	SET("queue-length", "control messages with queue lengths (TCP_INQ)", IPPROTO_TCP, E_TCP_INQ, 1, 0),
	SET("fastopen-queue", "a TFO listener (TCP_FASTOPEN)", IPPROTO_TCP, E_TCP_FASTOPEN, 5, 0),
	SET("fastopen-late", "TFO at the next connect (TCP_FASTOPEN_CONNECT)", IPPROTO_TCP, E_TCP_FASTOPEN_CONNECT, 1, 0),
	SET("fastopen-no-cookie", "TFO without cookies (TCP_FASTOPEN_NO_COOKIE)", IPPROTO_TCP, E_TCP_FASTOPEN_NO_COOKIE, 1, 0),
	PUT("fastopen-key", "a TFO key of ours (TCP_FASTOPEN_KEY)", IPPROTO_TCP, E_TCP_FASTOPEN_KEY, ANY, DATA(fastopen_key)),
	SET("max-rto", "the longest pause before a retransmission (TCP_RTO_MAX_MS)", IPPROTO_TCP, E_TCP_RTO_MAX_MS, 2000, 0),
	{ "owner", "treat", "the uid by which the host routes and filters (fchown)", owner },
	{ "control-mark", "treat", "a mark by a control message (SO_MARK)", send_control, SOL_SOCKET, E_SO_MARK, 77, ANY, "", 4 },
	{ "control-stamps", "treat", "time stamps by a control message (SO_TIMESTAMPING)", send_control, SOL_SOCKET, E_SO_TIMESTAMPING, E_TX_SOFTWARE, ANY, "", 4 },
	{ "control-txtime", "treat", "a time of transmission by a control message (SCM_TXTIME)", send_control, SOL_SOCKET, E_SO_TXTIME, 1, ANY, "", 8 },
	{ "uring-setsockopt", "treat", "an option by SOCKET_URING_OP_SETSOCKOPT", ring_set },
	{ "compat-setsockopt", "treat", "an option by the kernel's 32-bit entry", compat_set },
	{ "host-bridge", "treat", "a bridge on the host (SIOCBRADDBR)", add_bridge },
	{ "host-neighbour", "treat", "the host's neighbour table (SIOCSARP)", add_neighbour },
	{ "host-route", "treat", "the host's routes (SIOCADDRT)", add_route },
	{ 0 },
};
