/* SPDX-License-Identifier: Apache-2.0 */
/* How the socket came to whoever attacks with it. */
#include "escape.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

static void finish(struct ctx *c)
{
	enum outcome outcome;
	int domain = 0;
	socklen_t size = sizeof(domain);

	snprintf(c->token, sizeof(c->token), "%s/%s/%s/%u", c->attempt->name, c->variant,
		 c->identity, c->serial);
	if (c->fd >= 0 && raw(SYS_getsockopt, c->fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0)
		c->family = domain;
	if ((c->attempt->flags & IP6) && c->family != AF_INET6)
		outcome = not_applicable(c, "the socket is AF_INET");
	else if ((c->attempt->flags & NO_ADMIN) && strcmp(c->identity, "admin") == 0)
		outcome = not_applicable(c, "would change the host");
	else
		outcome = c->attempt->run(c);
	report(c, outcome);
}

static void direct(struct ctx *c)
{
	finish(c);
}

static void copied(struct ctx *c)
{
	int copy = (int)raw(SYS_dup, c->fd);

	raw(SYS_close, c->fd);
	c->fd = copy;
	finish(c);
}

static void forked(struct ctx *c)
{
	pid_t child = fork();

	if (child == 0) {
		finish(c);
		_exit(0);
	}
	raw(SYS_close, c->fd);
	waitpid(child, NULL, 0);
}

static void executed(struct ctx *c)
{
	char fd[16], report_fd[16], serial[16], family[16];
	char *words[128] = { (char *)"escape-static", (char *)"one" };
	char *environment[] = { NULL };
	int n = 2;

	snprintf(fd, sizeof(fd), "%d", c->fd);
	snprintf(report_fd, sizeof(report_fd), "%d", c->report);
	snprintf(serial, sizeof(serial), "%u", c->serial);
	snprintf(family, sizeof(family), "%d", c->family);
	for (int i = 2; i < settings.argc && n < 100; i++)
		words[n++] = settings.argv[i];
	const char *more[] = { "--attempts", c->attempt->name, "--variants", c->variant,
			       "--identity", c->identity,      "--fd",	     fd,
			       "--report",   report_fd,	       "--serial",   serial };
	for (size_t i = 0; i < sizeof(more) / sizeof(more[0]); i++)
		words[n++] = (char *)(uintptr_t)more[i];
	raw(SYS_fcntl, c->fd, F_SETFD, 0);
	raw(SYS_fcntl, c->report, F_SETFD, 0);
	long result = raw(SYS_execveat, settings.static_fd, "", words, environment, AT_EMPTY_PATH);

	report(c, broken(c, "exec: %s", strerror((int)-result)));
}

/* Give the socket to a process of another container, and pass its words on. */
static void passed(struct ctx *c)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	char text[256], control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec part = { text, 0 };
	struct msghdr message = { .msg_iov = &part,
				  .msg_iovlen = 1,
				  .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	int other;
	long result;

	if (!settings.meet[0]) {
		report(c, not_applicable(c, "no other container was given"));
		return;
	}
	other = (int)raw(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	strcpy(sa.sun_path, settings.meet);
	result = raw(SYS_connect, other, &sa, sizeof(sa));
	if (result < 0) {
		report(c, broken(c, "other container: %s", strerror((int)-result)));
		return;
	}
	part.iov_len = (size_t)snprintf(text, sizeof(text), "%s %s %u %d", c->attempt->name,
					c->identity, c->serial, c->family);
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(head), &c->fd, sizeof(int));
	raw(SYS_sendmsg, other, &message, MSG_NOSIGNAL);
	raw(SYS_close, c->fd);
	for (;;) {
		struct pollfd p[2] = { { .fd = other, .events = POLLIN },
				       { .fd = c->report, .events = POLLIN } };
		char words[700];
		int from;
		long got;

		if (raw(SYS_ppoll, p, 2, 0, 0, 8) < 0)
			continue;
		from = p[0].revents ? other : c->report;
		got = raw(SYS_recvfrom, from, words, sizeof(words), 0, 0, 0);
		if (got <= 0)
			return; /* said without a result: whoever started us notices */
		raw(SYS_sendto, from == other ? c->report : other, words, got, MSG_NOSIGNAL, 0, 0);
		if (from == other && words[0] == 'R')
			return;
	}
}

static void serve_one(int connection)
{
	char text[256], name[64], identity[16], why[200];
	char control[CMSG_SPACE(sizeof(int))];
	struct iovec part = { text, sizeof(text) - 1 };
	struct msghdr message = { .msg_iov = &part,
				  .msg_iovlen = 1,
				  .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct ctx c = { .variant = "scm", .report = connection, .index = -1, .fd = -1 };
	long got = raw(SYS_recvmsg, connection, &message, 0);
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	if (got <= 0)
		return;
	text[got] = 0;
	if (sscanf(text, "%63s %15s %u %d", name, identity, &c.serial, &c.family) != 4)
		return;
	c.attempt = find_attempt(name);
	c.identity = identity;
	if (!c.attempt)
		return;
	if (head && head->cmsg_type == SCM_RIGHTS)
		memcpy(&c.fd, CMSG_DATA(head), sizeof(int));
	if (c.fd < 0)
		/* A kernel that refuses the hand-over refuses the attempt. */
		report(&c, denied_by(&c, "no descriptor arrived", -EPERM));
	else if (!become(identity, why, sizeof(why)))
		report(&c, not_applicable(&c, "%s", why));
	else
		finish(&c);
}

void receive(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strcpy(sa.sun_path, settings.meet);
	unlink(sa.sun_path);
	if (bind(listener, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(listener, 16) < 0 ||
	    chmod(sa.sun_path, 0777) < 0) {
		perror("escape receive");
		exit(1);
	}
	printf("ready\n");
	fflush(stdout);
	for (bool leader = led();;) {
		struct pollfd p[2] = { { .fd = listener, .events = POLLIN },
				       { .fd = leader ? 0 : -1, .events = POLLIN } };
		int connection;

		if (poll(p, 2, -1) > 0 && p[1].revents) {
			while (waitpid(-1, NULL, 0) > 0)
				;
			exit(0);
		}
		connection = p[0].revents ? accept(listener, NULL, NULL) : -1;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (connection < 0)
			continue;
		if (fork() == 0) {
			alarm(10);
			close(listener);
			serve_one(connection);
			_exit(0);
		}
		close(connection);
	}
}

static void taken(struct ctx *c)
{
	pid_t holder = fork();
	long pidfd, result;

	if (holder == 0) {
		for (;;)
			pause();
	}
	int there = c->fd;

	raw(SYS_close, c->fd);
	pidfd = raw(SYS_pidfd_open, holder, 0);
	result = raw(SYS_pidfd_getfd, pidfd, there, 0);
	if (result < 0) {
		report(c, not_applicable(c, "pidfd_getfd: %s", strerror((int)-result)));
	} else {
		c->fd = (int)result;
		finish(c);
	}
	kill(holder, SIGKILL);
	waitpid(holder, NULL, 0);
}

static void fixed(struct ctx *c)
{
	long result;

	c->ring = ring_new(0);
	if (!c->ring) {
		report(c, not_applicable(c, "io_uring: %s", strerror(errno)));
		return;
	}
	result = ring_register(c->ring, &c->fd, 1);
	if (result < 0) {
		/* A kernel that refuses to take the socket refuses the attempt. */
		report(c, denied_by(c, "IORING_REGISTER_FILES", result));
		return;
	}
	raw(SYS_close, c->fd);
	c->fd = -1;
	c->index = 0;
	if (ring_has(c->ring, E_OP_FIXED_FD_INSTALL)) {
		struct sqe s = { .opcode = E_OP_FIXED_FD_INSTALL };

		result = ring_run(c, &s);
		if (result >= 0)
			c->fd = (int)result;
	}
	finish(c);
}

const struct variant variants[] = {
	{ "direct", "as connect() gave it", direct, 0, false },
	{ "mapped", "the same, opened as AF_INET6", direct, 0, true },
	{ "accepted", "as accept() gave it", direct, 1, false },
	{ "dup", "a dup; the original is closed", copied, 0, false },
	{ "fork", "in a forked child; the parent's is closed", forked, 0, false },
	{ "exec", "after exec of a static program", executed, 0, false },
	{ "scm", "passed to a process in another container", passed, 0, false },
	{ "pidfd", "taken out of another process by pidfd_getfd", taken, 0, false },
	{ "uring", "a fixed file of an io_uring, and what FIXED_FD_INSTALL makes of it", fixed, 0, false },
	{ 0 },
};

/* In a process of its own: get a socket, let the variant do its part, report. */
void run_attempt(struct ctx *c)
{
	for (const struct variant *v = variants; v->name; v++) {
		char why[200] = "";

		if (strcmp(v->name, c->variant) != 0)
			continue;
		c->family = v->mapped || (c->attempt->flags & IP6) ? AF_INET6 : AF_INET;
		c->fd = obtain(c->family, v->origin, why, sizeof(why));
		if (c->fd < 0) {
			report(c, broken(c, "%s", why));
			return;
		}
		v->run(c);
		return;
	}
}

/* The static program of variant exec continues here. */
void finish_inherited(struct ctx *c)
{
	finish(c);
}
