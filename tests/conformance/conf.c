/* SPDX-License-Identifier: Apache-2.0 */
/* The shared half of the conformance programs: see conf.h. */
#include "conf.h"

#include <stdarg.h>
#include <sys/mman.h>
#include <sys/resource.h>

struct conf conf;

/* Shared with children, so that their connections count too. */
static struct tally {
	int slim, overlay;
} *tally;

static int orders = -1;
static pid_t orders_pid;

static void bark(int signo)
{
	static const char text[] = "not ok - deadline passed\n";

	(void)signo;
	if (write(STDOUT_FILENO, text, sizeof(text) - 1) < 0)
		_exit(3);
	_exit(1);
}

void conf_deadline(unsigned seconds)
{
	/* Not SIGALRM: some programs test what that does to their calls. */
	struct sigaction action = { .sa_handler = bark };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 5 };
	struct itimerspec when = { .it_value.tv_sec = seconds };
	timer_t timer;

	sigaction(SIGRTMIN + 5, &action, NULL);
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) == 0)
		timer_settime(timer, 0, &when, NULL);
}

double conf_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

double conf_cpu(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void conf_sleep(double seconds)
{
	struct timespec t = { .tv_sec = (time_t)seconds };

	t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
	while (nanosleep(&t, &t) < 0 && errno == EINTR)
		;
}

void conf_fail(const char *file, int line, int error, const char *format, ...)
{
	va_list args;

	printf("not ok - ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf(" (%s:%d%s%s)\n", file, line, error ? ": " : "", error ? strerror(error) : "");
	fflush(stdout);
	_exit(1);
}

void conf_ok(const char *format, ...)
{
	va_list args;

	printf("ok - ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
}

void conf_note(const char *format, ...)
{
	va_list args;

	printf("# ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
}

void conf_init(int argc, char **argv, unsigned seconds)
{
	const char *family = getenv("CONF_FAMILY");
	struct sockaddr_in sin = { .sin_family = AF_INET };
	socklen_t size = sizeof(sin);
	int fd;

	conf.program = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
	conf.family = family && *family == '6' ? AF_INET6 : AF_INET;
	if (argc < 3 || inet_pton(AF_INET, argv[1], &conf.peer) != 1 || atoi(argv[2]) <= 0) {
		fprintf(stderr, "usage: %s PEER-ADDRESS PEER-PORT (a peer must run there)\n", argv[0]);
		exit(2);
	}
	conf.port = (uint16_t)atoi(argv[2]);
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	conf_deadline(seconds);
	tally = mmap(NULL, sizeof(*tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(tally != MAP_FAILED, "mmap");

	/* Our own address: what the kernel would send from. */
	sin.sin_addr = conf.peer;
	sin.sin_port = htons((uint16_t)(conf.port + CONF_ORDERS));
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	CHECK(fd >= 0, "socket");
	CHECK(connect(fd, (struct sockaddr *)&sin, sizeof(sin)) == 0, "no way to the peer");
	CHECK(getsockname(fd, (struct sockaddr *)&sin, &size) == 0, "getsockname");
	conf.self = sin.sin_addr;
	close(fd);
}

int conf_done(void)
{
	printf("# path slim=%d overlay=%d\n", tally->slim, tally->overlay);
	printf("ok - %s\n", conf.program);
	fflush(stdout);
	return 0;
}

socklen_t conf_address(struct sockaddr_storage *out, struct in_addr ip, uint16_t port)
{
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)out;
	struct sockaddr_in *four = (struct sockaddr_in *)out;

	memset(out, 0, sizeof(*out));
	if (conf.family == AF_INET) {
		four->sin_family = AF_INET;
		four->sin_addr = ip;
		four->sin_port = htons(port);
		return sizeof(*four);
	}
	six->sin6_family = AF_INET6;
	six->sin6_port = htons(port);
	/* All-zero stays the any-address; ::ffff:0.0.0.0 would be IPv4 only. */
	if (ip.s_addr != 0) {
		six->sin6_addr.s6_addr[10] = 0xff;
		six->sin6_addr.s6_addr[11] = 0xff;
		memcpy(&six->sin6_addr.s6_addr[12], &ip, 4);
	}
	return sizeof(*six);
}

bool conf_same(const struct sockaddr_storage *sa, struct in_addr ip, uint16_t port)
{
	struct sockaddr_storage want;
	const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)sa;
	const struct sockaddr_in *four = (const struct sockaddr_in *)sa;

	conf_address(&want, ip, port);
	if (sa->ss_family != want.ss_family)
		return false;
	if (sa->ss_family == AF_INET)
		return four->sin_addr.s_addr == ip.s_addr && ntohs(four->sin_port) == port;
	return memcmp(&six->sin6_addr, &((struct sockaddr_in6 *)&want)->sin6_addr, 16) == 0 &&
	       ntohs(six->sin6_port) == port;
}

uint16_t conf_port_of(const struct sockaddr_storage *sa)
{
	if (sa->ss_family == AF_INET)
		return ntohs(((const struct sockaddr_in *)sa)->sin_port);
	return ntohs(((const struct sockaddr_in6 *)sa)->sin6_port);
}

const char *conf_text(const struct sockaddr_storage *sa)
{
	static __thread char text[4][80];
	static __thread unsigned turn;
	char ip[INET6_ADDRSTRLEN] = "?";
	char *out = text[turn++ % 4];

	if (sa->ss_family == AF_INET)
		inet_ntop(AF_INET, &((const struct sockaddr_in *)sa)->sin_addr, ip, sizeof(ip));
	else if (sa->ss_family == AF_INET6)
		inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)sa)->sin6_addr, ip, sizeof(ip));
	snprintf(out, sizeof(text[0]), "%s port %u", ip,
		 sa->ss_family == AF_INET || sa->ss_family == AF_INET6 ? conf_port_of(sa) : 0);
	return out;
}

struct in_addr conf_nobody(uint8_t which)
{
	struct in_addr ip = conf.peer;

	((unsigned char *)&ip)[2] = 250;
	((unsigned char *)&ip)[3] = which;
	return ip;
}

int conf_socket(int flags)
{
	int fd = socket(conf.family, SOCK_STREAM | flags, 0);

	CHECK(fd >= 0, "socket");
	return fd;
}

int conf_connect(int fd, enum conf_service service)
{
	struct sockaddr_storage sa;
	socklen_t size = conf_address(&sa, conf.peer, (uint16_t)(conf.port + service));

	return connect(fd, (struct sockaddr *)&sa, size);
}

int conf_dial(enum conf_service service)
{
	int fd = conf_socket(0);

	CHECK(conf_connect(fd, service) == 0, "connect to service %d", service);
	conf_path(fd);
	return fd;
}

int conf_dial_nonblock(enum conf_service service)
{
	int fd = conf_socket(SOCK_NONBLOCK);
	int r = conf_connect(fd, service);

	CHECK(r == 0 || errno == EINPROGRESS, "non-blocking connect to service %d", service);
	return fd;
}

int conf_bound(uint16_t *port, int flags)
{
	struct sockaddr_storage sa;
	socklen_t size = conf_address(&sa, conf.self, port ? *port : 0);
	int fd = conf_socket(flags);

	CHECK(bind(fd, (struct sockaddr *)&sa, size) == 0, "bind to %s", conf_text(&sa));
	size = sizeof(sa);
	CHECK(getsockname(fd, (struct sockaddr *)&sa, &size) == 0, "getsockname");
	CHECK(conf_port_of(&sa) != 0, "bound socket without a port");
	if (port)
		*port = conf_port_of(&sa);
	return fd;
}

int conf_listen(uint16_t *port, int backlog)
{
	int fd = conf_bound(port, 0);

	CHECK(listen(fd, backlog) == 0, "listen");
	return fd;
}

int conf_accept(int listener)
{
	int fd = accept(listener, NULL, NULL);

	CHECK(fd >= 0, "accept");
	conf_path(fd);
	return fd;
}

int conf_so_error(int fd)
{
	int error = -1;
	socklen_t size = sizeof(error);

	CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0, "SO_ERROR");
	return error;
}

void conf_nonblock(int fd, bool on)
{
	int flags = fcntl(fd, F_GETFL);

	CHECK(flags >= 0, "F_GETFL");
	flags = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
	CHECK(fcntl(fd, F_SETFL, flags) == 0, "F_SETFL");
}

bool conf_wait(int fd, short events, int ms)
{
	struct pollfd p = { .fd = fd, .events = events };
	double end = conf_now() + ms / 1000.0;
	int r;

	do {
		int left = (int)((end - conf_now()) * 1000);

		r = poll(&p, 1, left > 0 ? left : 0);
	} while (r < 0 && errno == EINTR);
	return r == 1;
}

bool conf_path(int fd)
{
	uint64_t ours = 0, its = 0;
	socklen_t size = sizeof(ours);
	int fresh = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool slim;

	if (fresh < 0)
		return false; /* out of descriptors: a program tests just that */
	if (getsockopt(fresh, SOL_SOCKET, CONF_SO_NETNS_COOKIE, &ours, &size) < 0)
		ours = 0;
	size = sizeof(its);
	if (getsockopt(fd, SOL_SOCKET, CONF_SO_NETNS_COOKIE, &its, &size) < 0)
		its = ours;
	close(fresh);
	slim = its != ours;
	__atomic_fetch_add(slim ? &tally->slim : &tally->overlay, 1, __ATOMIC_RELAXED);
	return slim;
}

void conf_names(int fd, enum conf_service service)
{
	struct sockaddr_storage sa;
	socklen_t size = sizeof(sa);

	CHECK(getpeername(fd, (struct sockaddr *)&sa, &size) == 0, "getpeername");
	CHECK(conf_same(&sa, conf.peer, (uint16_t)(conf.port + service)), "getpeername says %s",
	      conf_text(&sa));
	CHECK(size == (conf.family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6)),
	      "getpeername gives length %u", size);
	size = sizeof(sa);
	CHECK(getsockname(fd, (struct sockaddr *)&sa, &size) == 0, "getsockname");
	CHECK(conf_port_of(&sa) != 0 && conf_same(&sa, conf.self, conf_port_of(&sa)),
	      "getsockname says %s", conf_text(&sa));
}

void conf_send_all(int fd, const void *data, size_t size)
{
	const char *p = data;

	while (size > 0) {
		ssize_t n = send(fd, p, size, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			conf_wait(fd, POLLOUT, 1000);
			continue;
		}
		if (n <= 0)
			conf_fail(__FILE__, __LINE__, errno, "send with %zu bytes left", size);
		p += n;
		size -= (size_t)n;
	}
}

void conf_recv_all(int fd, void *data, size_t size)
{
	char *p = data;

	while (size > 0) {
		ssize_t n = recv(fd, p, size, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			conf_wait(fd, POLLIN, 1000);
			continue;
		}
		if (n <= 0)
			conf_fail(__FILE__, __LINE__, n < 0 ? errno : 0, "recv with %zu bytes missing", size);
		p += n;
		size -= (size_t)n;
	}
}

void conf_pattern(unsigned char *out, size_t offset, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		size_t at = offset + i;

		out[i] = (unsigned char)(at * 31 + (at >> 8) * 7 + (at >> 16));
	}
}

void conf_echo(int fd, size_t size)
{
	unsigned char sent[4096], got[4096];

	for (size_t at = 0; at < size; at += sizeof(sent)) {
		size_t n = size - at < sizeof(sent) ? size - at : sizeof(sent);

		conf_pattern(sent, at, n);
		conf_send_all(fd, sent, n);
		conf_recv_all(fd, got, n);
		if (memcmp(sent, got, n) != 0)
			conf_fail(__FILE__, __LINE__, 0, "echo differs in the %zu bytes from %zu on", n, at);
	}
}

void conf_send_pattern(int fd, size_t size)
{
	unsigned char block[16384];

	for (size_t at = 0; at < size; at += sizeof(block)) {
		size_t n = size - at < sizeof(block) ? size - at : sizeof(block);

		conf_pattern(block, at, n);
		conf_send_all(fd, block, n);
	}
}

void conf_recv_pattern(int fd, size_t size)
{
	unsigned char want[16384], got[16384];

	for (size_t at = 0; at < size; at += sizeof(want)) {
		size_t n = size - at < sizeof(want) ? size - at : sizeof(want);

		conf_pattern(want, at, n);
		conf_recv_all(fd, got, n);
		if (memcmp(want, got, n) != 0)
			conf_fail(__FILE__, __LINE__, 0, "data differ in the %zu bytes from %zu on", n, at);
	}
}

void conf_expect_eof(int fd)
{
	char byte;
	ssize_t n;

	do {
		if (!conf_wait(fd, POLLIN, 8000))
			conf_fail(__FILE__, __LINE__, 0, "no end of data within 8 s");
		n = recv(fd, &byte, 1, 0);
	} while (n < 0 && (errno == EINTR || errno == EAGAIN));
	if (n != 0)
		conf_fail(__FILE__, __LINE__, n < 0 ? errno : 0, n < 0 ? "wanted the end of data" : "stray byte");
}

void conf_line(int fd, char *out, size_t size)
{
	for (size_t i = 0; i + 1 < size; i++) {
		conf_recv_all(fd, out + i, 1);
		if (out[i] == '\n') {
			out[i] = 0;
			return;
		}
	}
	conf_fail(__FILE__, __LINE__, 0, "line of more than %zu bytes", size);
}

void conf_expect_name(int fd, const struct sockaddr_storage *peer, uint16_t port)
{
	char line[200], want[200], a[INET_ADDRSTRLEN], b[INET_ADDRSTRLEN];

	inet_ntop(AF_INET, &conf.peer, a, sizeof(a));
	inet_ntop(AF_INET, &conf.self, b, sizeof(b));
	CHECK(conf_same(peer, conf.peer, conf_port_of(peer)), "accept names %s", conf_text(peer));
	snprintf(want, sizeof(want), "%s %u %s %u", a, conf_port_of(peer), b, port);
	conf_line(fd, line, sizeof(line));
	CHECK(strcmp(line, want) == 0, "peer says '%s', we see '%s'", line, want);
}

uint64_t conf_hash(uint64_t hash, const void *data, size_t size)
{
	const unsigned char *p = data;

	for (size_t i = 0; i < size; i++)
		hash = (hash ^ p[i]) * 1099511628211ull;
	return hash;
}

void conf_expect_sunk(int fd, size_t size)
{
	unsigned char block[16384];
	char want[80], got[80] = "";
	uint64_t hash = CONF_HASH0;

	for (size_t at = 0; at < size; at += sizeof(block)) {
		size_t n = size - at < sizeof(block) ? size - at : sizeof(block);

		conf_pattern(block, at, n);
		hash = conf_hash(hash, block, n);
	}
	snprintf(want, sizeof(want), "%zu %016llx\n", size, (unsigned long long)hash);
	conf_recv_all(fd, got, strlen(want));
	CHECK(strcmp(want, got) == 0, "peer got %swanted %s", got, want);
}

/* The orders' socket; a forked child makes its own. */
static int orders_socket(void)
{
	struct sockaddr_in sin = { .sin_family = AF_INET, .sin_addr = conf.peer };
	struct timeval wait = { .tv_usec = 250000 };

	if (orders >= 0 && orders_pid == getpid())
		return orders;
	sin.sin_port = htons((uint16_t)(conf.port + CONF_ORDERS));
	orders = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	CHECK(orders >= 0, "socket");
	CHECK(connect(orders, (struct sockaddr *)&sin, sizeof(sin)) == 0, "connect (UDP)");
	CHECK(setsockopt(orders, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) == 0, "SO_RCVTIMEO");
	orders_pid = getpid();
	return orders;
}

/* Send "ID text" until the peer answers "ID ..."; the answer's text to out. */
static void ask(unsigned id, const char *text, const char *until, char *out, size_t size, double seconds)
{
	double end = conf_now() + seconds;
	char request[300], answer[600];
	int fd = orders_socket();

	snprintf(request, sizeof(request), "%u %s", id, text);
	while (conf_now() < end) {
		unsigned got;
		int skip = 0;
		ssize_t n;

		if (send(fd, request, strlen(request), 0) < 0 && errno != ECONNREFUSED)
			conf_fail(__FILE__, __LINE__, errno, "order to the peer");
		while ((n = recv(fd, answer, sizeof(answer) - 1, 0)) > 0) {
			answer[n] = 0;
			if (sscanf(answer, "%u %n", &got, &skip) == 1 && got == id &&
			    strncmp(answer + skip, until, strlen(until)) == 0) {
				snprintf(out, size, "%s", answer + skip);
				return;
			}
			if (strncmp(until, "done", 4) == 0)
				break; /* still at it: ask again after a pause */
		}
		if (n > 0)
			conf_sleep(0.02);
	}
	conf_fail(__FILE__, __LINE__, 0, "peer did not answer '%s' within %.0f s", text, seconds);
}

unsigned conf_order(const char *format, ...)
{
	static unsigned count;
	unsigned id = ((unsigned)getpid() << 12 ^ (unsigned)time(NULL) << 4) + ++count;
	char text[200], answer[64];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	ask(id, text, "started", answer, sizeof(answer), 5);
	return id;
}

unsigned conf_dial_me(int n, const char *mode, uint16_t port, int argument)
{
	char self[INET_ADDRSTRLEN];

	inet_ntop(AF_INET, &conf.self, self, sizeof(self));
	return conf_order("dial %d %s %s %u %d", n, mode, self, port, argument);
}

struct conf_result conf_result(unsigned id, double seconds)
{
	struct conf_result result = { .ok = -1 };
	char answer[600];

	ask(id, "poll", "done", answer, sizeof(answer), seconds);
	if (sscanf(answer, "done ok=%d fail=%d eof=%d reset=%d timeout=%d refused=%d %255[^\n]", &result.ok,
		   &result.fail, &result.eof, &result.reset, &result.timeout, &result.refused,
		   result.text) < 6)
		conf_fail(__FILE__, __LINE__, 0, "peer's answer is not understood: %s", answer);
	return result;
}

void conf_all_ok(unsigned id, int n)
{
	struct conf_result r = conf_result(id, 15);

	CHECK(r.ok == n && r.fail == 0, "peer: %d of %d ok, %d failed: %s", r.ok, n, r.fail, r.text);
}

void conf_refused_soon(uint16_t port)
{
	double end = conf_now() + 2;
	struct conf_result r;

	do {
		r = conf_result(conf_dial_me(1, "id", port, 0), 10);
		CHECK(r.ok == 0, "somebody still answers on port %u", port);
	} while (!r.refused && conf_now() < end);
	CHECK(r.refused == 1, "port %u: fail=%d reset=%d %s", port, r.fail, r.reset, r.text);
}

pid_t conf_fork(void)
{
	pid_t pid = fork();

	CHECK(pid >= 0, "fork");
	if (pid == 0)
		conf_deadline(20);
	return pid;
}

void conf_leave(void)
{
	fflush(stdout);
	_exit(0);
}

void conf_join(pid_t pid)
{
	int status = 0;
	pid_t r;

	do
		r = waitpid(pid, &status, 0);
	while (r < 0 && errno == EINTR);
	CHECK(r == pid, "waitpid");
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child ended with status 0x%x", status);
}

void conf_send_fd(int unix_fd, int fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { .space = "" };
	char byte = 'F';
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1,
			      .msg_control = control.space, .msg_controllen = sizeof(control.space) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(int));
	CHECK(sendmsg(unix_fd, &msg, 0) == 1, "sendmsg with a descriptor");
}

int conf_recv_fd(int unix_fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { .space = "" };
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1,
			      .msg_control = control.space, .msg_controllen = sizeof(control.space) };
	struct cmsghdr *c;
	int fd;

	CHECK(recvmsg(unix_fd, &msg, 0) == 1, "recvmsg with a descriptor");
	c = CMSG_FIRSTHDR(&msg);
	CHECK(c && c->cmsg_type == SCM_RIGHTS, "no descriptor came");
	memcpy(&fd, CMSG_DATA(c), sizeof(int));
	return fd;
}
