/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The suite alone on one machine, without router, shim and Python: for guests that try
 * a kernel, a module or BPF programs. What the router does is done here: make a socket
 * in this namespace, tag it if there is something to tag it with, hand it over.
 *
 *      this namespace                          namespaces of their own
 *      escape guest: dealer, canary, hand      escape run (one identity after another)
 *      escape serve on 198.18.0.1:7090         escape receive
 *
 * Wants root, an interface with 198.18.0.1, and loopback. Ends with 1 if anything broke,
 * with --secure 1 also if anything escaped.
 */
#include "escape.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#define PEER "198.18.0.1"
#define PEER_PORT 7090
#define CANARY_PORT 7091
#define MEET "/tmp/escape-meet"
#define DEALER "/tmp/escape-dealer"
#define SECRET "canary-e7c1d09a55b2"
#define CONTROL "/proc/slim_kmod/control"
#define PIN "/sys/fs/bpf/slim/tags"

static int orders = -1, control = -1, pin = -1;
static int kept = -1; /* a copy of the last socket: without a module's help to revoke by */
static char heard[64][160];
static unsigned n_heard;
static unsigned counts[8];

struct record {
	uint16_t magic;
	uint8_t version, op;
	int32_t fd;
	uint64_t cookie, value, reserved;
};

static int listen_on(int family, const char *text, uint16_t port)
{
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, failed;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	inet_pton(family, text, family == AF_INET ? (void *)&four.sin_addr : (void *)&six.sin6_addr);
	failed = family == AF_INET ? bind(fd, (struct sockaddr *)&four, sizeof(four)) :
				     bind(fd, (struct sockaddr *)&six, sizeof(six));
	if (failed < 0 || listen(fd, 64) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static int dial_to(int family, const char *text, uint16_t port)
{
	struct ctx c = { .family = family };
	struct sockaddr_storage sa;
	struct in_addr ip;
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	inet_pton(AF_INET, text, &ip);
	if (connect(fd, (struct sockaddr *)&sa, host_address(&c, &sa, ip, port)) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

/* What a worker does for accept: a connection that the peer makes. */
static int accepted(void)
{
	struct sockaddr_in6 name;
	socklen_t size = sizeof(name);
	char order[32];
	int listener = listen_on(AF_INET6, "::", 0), fd = -1;

	if (listener < 0)
		return -1;
	getsockname(listener, (struct sockaddr *)&name, &size);
	snprintf(order, sizeof(order), "DIAL %u\n", ntohs(name.sin6_port));
	if (write(orders, order, strlen(order)) > 0 && wait_for(listener, POLLIN, 3000))
		fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	close(listener);
	return fd;
}

static bool tag(int fd, uint32_t state)
{
	uint64_t cookie = cookie_of(fd);

	if (control >= 0) {
		struct record r = { 0x4B53, 1, 1, fd, cookie, 0, 0 };

		return write(control, &r, sizeof(r)) == sizeof(r);
	}
	if (pin >= 0) {
		struct {
			uint64_t cookie;
			uint32_t state, reserved;
		} value = { cookie, state, 0 };
		union bpf_attr a;

		memset(&a, 0, sizeof(a));
		a.map_fd = (uint32_t)pin;
		a.key = (uintptr_t)&fd;
		a.value = (uintptr_t)&value;
		return raw(SYS_bpf, BPF_MAP_UPDATE_ELEM, &a, sizeof(a)) == 0;
	}
	return true;
}

static void deal(int listener)
{
	int to = accept4(listener, NULL, NULL, SOCK_CLOEXEC), family = AF_INET, origin = 0, fd;
	char text[64], byte = 'x', space[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
	ssize_t got = wait_for(to, POLLIN, 2000) ? recv(to, text, sizeof(text) - 1, 0) : -1;

	if (got > 0) {
		text[got] = 0;
		sscanf(text, "%d %d", &family, &origin);
		fd = origin ? accepted() : dial_to(family, PEER, PEER_PORT);
		if (fd >= 0 && tag(fd, 1)) {
			struct cmsghdr *head = (struct cmsghdr *)space;

			message.msg_control = space;
			message.msg_controllen = sizeof(space);
			head->cmsg_level = SOL_SOCKET;
			head->cmsg_type = SCM_RIGHTS;
			head->cmsg_len = CMSG_LEN(sizeof(int));
			memcpy(CMSG_DATA(head), &fd, sizeof(int));
		}
		sendmsg(to, &message, MSG_NOSIGNAL);
		if (kept >= 0)
			close(kept);
		kept = -1;
		if (control < 0)
			kept = fd;
		else if (fd >= 0)
			close(fd);
	}
	close(to);
}

static bool revoke_by_hand(uint64_t cookie)
{
	struct sockaddr none = { .sa_family = AF_UNSPEC };

	if (control >= 0) {
		struct record r = { 0x4B53, 1, 2, -1, cookie, 0, 0 };

		return write(control, &r, sizeof(r)) == sizeof(r);
	}
	if (kept < 0 || cookie_of(kept) != cookie || !tag(kept, 2))
		return false;
	/* As near to SOCK_DESTROY as its owner comes without a netlink module. */
	return connect(kept, &none, sizeof(none)) == 0;
}

static void hear(int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	char text[160];
	ssize_t got = wait_for(fd, POLLIN, 500) ? read(fd, text, sizeof(text) - 1) : -1;

	if (got > 0) {
		text[got] = 0;
		text[strcspn(text, "\n")] = 0;
		snprintf(heard[n_heard++ % 64], sizeof(heard[0]), "%s", text);
		dprintf(fd, "%s\n", SECRET);
	}
	close(fd);
}

static void answer(const char *question, int to)
{
	unsigned long long cookie;
	char ip[64];
	unsigned port;
	bool done = false;

	if (sscanf(question, "{\"ask\": \"dial %63s %u", ip, &port) == 2) {
		int fd = dial_to(AF_INET, ip, (uint16_t)port);

		done = fd >= 0 && dprintf(fd, "%s\n", SECRET) > 0;
		if (fd >= 0)
			close(fd);
	} else if (sscanf(question, "{\"ask\": \"revoke %llu", &cookie) == 1) {
		done = revoke_by_hand(cookie);
	}
	dprintf(to, "A %s\n", done ? "ok" : "no");
}

static void field(const char *line, const char *name, char *out, size_t size)
{
	char key[32];
	const char *at;

	snprintf(key, sizeof(key), "\"%s\": \"", name);
	at = strstr(line, key);
	out[0] = 0;
	if (at) {
		at += strlen(key);
		snprintf(out, size, "%.*s", (int)strcspn(at, "\""), at);
	}
}

static void judge(const char *line)
{
	char token[160], outcome[32], error[32], detail[160], name[64], variant[32], identity[32];
	int kind = BROKEN;

	field(line, "token", token, sizeof(token));
	field(line, "outcome", outcome, sizeof(outcome));
	field(line, "errno", error, sizeof(error));
	field(line, "detail", detail, sizeof(detail));
	field(line, "attempt", name, sizeof(name));
	field(line, "variant", variant, sizeof(variant));
	field(line, "identity", identity, sizeof(identity));
	for (int i = 0; i <= BROKEN; i++)
		if (strcmp(outcome, outcome_names[i]) == 0)
			kind = i;
	for (unsigned i = 0; i < 64; i++)
		if (strcmp(heard[i], token) == 0 && kind != LEAKED)
			kind = SUCCEEDED; /* whatever the program thought of it */
	counts[kind]++;
	printf("R %s %s %s %s %s%s%s\n", name, variant, identity, outcome_names[kind],
	       error[0] ? error : "-", kind == DENIED || kind == NOT_APPLICABLE ? "" : " | ",
	       kind == DENIED || kind == NOT_APPLICABLE ? "" : detail);
}

/* Run ourselves with other words, in a network namespace of its own if it is said. */
static pid_t start(bool apart, int in, int out, char **words)
{
	pid_t child = fork();

	if (child == 0) {
		if (apart && unshare(CLONE_NEWNET) < 0)
			_exit(3);
		if (in >= 0)
			dup2(in, 0);
		if (out >= 0)
			dup2(out, 1);
		execv("/proc/self/exe", words);
		_exit(4);
	}
	return child;
}

int guest(const char *chosen, const char *variants_chosen, const char *attempts, bool secure)
{
	char netns[64], *words[64];
	const char *const common[] = { "--peer",      PEER ":7090", "--canary",  PEER ":7091",
				       "--peer-host", PEER,	    "--secret",	 SECRET,
				       "--meet",      MEET,	    "--dealer",	 DEALER,
				       "--static",    "/proc/self/exe", "--fact", "address=" PEER "=c6120001",
				       "--fact",      "device=lo",  "--fact",	 "device=dummy0",
				       "--fact",      "interface=dummy0" };
	const char *const all[] = { "user", "root", "userns", "admin" };
	struct sockaddr_un sa = { .sun_family = AF_UNIX, .sun_path = DEALER };
	struct pollfd p[5];
	struct stat status;
	pid_t server, other;
	int n = 2, dealer;
	union bpf_attr a;
	unsigned done = 0;

	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	control = open(CONTROL, O_WRONLY | O_CLOEXEC);
	memset(&a, 0, sizeof(a));
	a.pathname = (uintptr_t)PIN;
	if (control < 0)
		pin = (int)raw(SYS_bpf, BPF_OBJ_GET, &a, sizeof(a));
	printf("escape: sockets are tagged by %s\n", control >= 0 ? "the module" : pin >= 0 ? "BPF" : "nobody");
	if (secure && control < 0 && pin < 0) {
		printf("escape: there is nothing to tag with\n");
		return 1;
	}
	stat("/proc/self/ns/net", &status);
	snprintf(netns, sizeof(netns), "netns=%llu", (unsigned long long)status.st_ino);
	words[0] = (char *)"escape";
	for (size_t i = 0; i < sizeof(common) / sizeof(common[0]); i++)
		words[n++] = (char *)(uintptr_t)common[i];
	words[n++] = (char *)"--fact";
	words[n++] = netns;
	words[n] = NULL;
	words[1] = (char *)"serve";
	server = start(false, -1, -1, words);
	words[1] = (char *)"receive";
	other = start(true, -1, -1, words);
	for (int turn = 0; turn < 100 && orders < 0; turn++) {
		usleep(50000);
		orders = dial_to(AF_INET, PEER, PEER_PORT);
	}
	if (orders < 0 || write(orders, "O", 1) != 1) {
		printf("escape: nobody serves at %s: is there an interface with it?\n", PEER);
		return 1;
	}
	dealer = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	unlink(DEALER);
	bind(dealer, (struct sockaddr *)&sa, sizeof(sa));
	listen(dealer, 16);
	chmod(DEALER, 0777);
	p[0].fd = listen_on(AF_INET, PEER, CANARY_PORT);
	p[1].fd = listen_on(AF_INET, "127.0.0.1", CANARY_PORT);
	p[2].fd = listen_on(AF_INET6, "::1", CANARY_PORT);
	p[3].fd = dealer;
	for (size_t who = 0; who < sizeof(all) / sizeof(all[0]); who++) {
		int in[2], out[2];
		char line[2048];
		size_t used = 0;
		pid_t child;

		if (!strstr(chosen, all[who]) || (who == 1 && !strstr(chosen, "root")))
			continue;
		if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
			return 1;
		words[1] = (char *)"run";
		words[n] = (char *)"--identity";
		words[n + 1] = (char *)(uintptr_t)all[who];
		words[n + 2] = (char *)"--variants";
		words[n + 3] = (char *)(uintptr_t)variants_chosen;
		words[n + 4] = (char *)"--attempts";
		words[n + 5] = (char *)(uintptr_t)attempts;
		words[n + 6] = NULL;
		child = start(true, in[0], out[1], words);
		close(in[0]);
		close(out[1]);
		p[4].fd = out[0];
		for (bool end = false; !end;) {
			for (int i = 0; i < 5; i++)
				p[i].events = POLLIN;
			if (poll(p, 5, -1) < 0)
				continue;
			for (int i = 0; i < 3; i++)
				if (p[i].fd >= 0 && p[i].revents)
					hear(p[i].fd);
			if (p[3].revents)
				deal(p[3].fd);
			if (!p[4].revents)
				continue;
			ssize_t got = read(out[0], line + used, sizeof(line) - 1 - used);
			char *newline;

			if (got <= 0)
				break;
			used += (size_t)got;
			line[used] = 0;
			while ((newline = strchr(line, '\n'))) {
				*newline = 0;
				if (strncmp(line, "{\"ask\"", 6) == 0)
					answer(line, in[1]);
				else if (strncmp(line, "{\"attempt\"", 10) == 0)
					judge(line), done++;
				else
					printf("%s: %s\n", all[who], line);
				used -= (size_t)(newline + 1 - line);
				memmove(line, newline + 1, used + 1);
			}
		}
		close(in[1]);
		close(out[0]);
		waitpid(child, NULL, 0);
	}
	kill(server, SIGKILL);
	kill(other, SIGKILL);
	printf("escape: %u tried: %u denied, %u succeeded, %u leaked, %u not applicable, %u broken\n", done,
	       counts[DENIED], counts[SUCCEEDED], counts[LEAKED], counts[NOT_APPLICABLE], counts[BROKEN]);
	if (!done || counts[BROKEN])
		return 1;
	return secure && (counts[SUCCEEDED] || counts[LEAKED]);
}
