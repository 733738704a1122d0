/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keep it after revocation. The runner revokes by the host's own means: the router, the
 * module's control file, or SOCK_DESTROY where there is nothing better (no secure mode).
 */
#include "escape.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

static bool revoked(struct ctx *c)
{
	uint64_t cookie = 0;
	socklen_t size = sizeof(cookie);

	if (c_getsockopt(c, SOL_SOCKET, E_SO_COOKIE, &cookie, &size) < 0 || !cookie)
		return false;
	return ask(c, "revoke %llu", (unsigned long long)cookie);
}

#define REVOKE(c)                                                              \
	do {                                                                   \
		if (!revoked(c))                                                \
			return not_applicable(c, "the runner could not revoke"); \
	} while (0)

static enum outcome still_talks(struct ctx *c)
{
	if (ping(c, 300))
		return succeeded(c, "the peer still echoes");
	return denied(c);
}

static enum outcome reconnect(struct ctx *c)
{
	struct sockaddr_storage sa;
	socklen_t size = host_address(c, &sa, settings.canary, settings.canary_port);

	noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	if (noted(c, "connect", c_connect(c, &sa, size)) < 0)
		return denied(c);
	return talk(c);
}

static enum outcome keep_talking(struct ctx *c)
{
	REVOKE(c);
	return still_talks(c);
}

static enum outcome keep_reconnect(struct ctx *c)
{
	REVOKE(c);
	return reconnect(c);
}

static enum outcome keep_fastopen(struct ctx *c)
{
	struct sockaddr_storage sa;
	socklen_t size = host_address(c, &sa, settings.canary, settings.canary_port);
	long result;

	REVOKE(c);
	c_dissolve(c);
	result = c_sendto(c, "x\n", 2, MSG_FASTOPEN, &sa, size);
	if (noted(c, "sendto(MSG_FASTOPEN)", result) < 0)
		return denied(c);
	return talk(c);
}

static enum outcome keep_names(struct ctx *c)
{
	struct sockaddr_storage sa = { 0 };
	socklen_t size = sizeof(sa);

	REVOKE(c);
	if (noted(c, "getsockname", c_getsockname(c, &sa, &size)) < 0)
		return denied(c);
	return scanned(c, "getsockname", &sa, size);
}

static enum outcome keep_option(struct ctx *c)
{
	int value = 0x10, back = 0;
	socklen_t size = sizeof(back);

	REVOKE(c);
	if (noted(c, "IP_TOS", c_setsockopt(c, IPPROTO_IP, E_IP_TOS, &value, sizeof(value))) < 0)
		return denied(c);
	c_getsockopt(c, IPPROTO_IP, E_IP_TOS, &back, &size);
	return succeeded(c, "IP_TOS is now %d", back);
}

/* A copy that lies in a Unix socket while the others are revoked. */
static enum outcome keep_queued(struct ctx *c)
{
	int pair[2], back = -1;
	char byte = 'x', control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part,
				  .msg_iovlen = 1,
				  .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	uint64_t cookie;

	if (!c_needs_fd(c))
		return denied(c);
	cookie = cookie_of(c->fd);
	raw(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET, 0, pair);
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(head), &c->fd, sizeof(int));
	if (noted(c, "sendmsg", raw(SYS_sendmsg, pair[0], &message, 0)) < 0)
		return denied(c);
	raw(SYS_close, c->fd);
	c->fd = -1;
	c->ring = NULL; /* a ring would hold another copy */
	c->index = -1;
	if (!ask(c, "revoke %llu", (unsigned long long)cookie))
		return not_applicable(c, "the runner could not revoke");
	if (noted(c, "recvmsg", raw(SYS_recvmsg, pair[1], &message, MSG_DONTWAIT)) < 0)
		return denied(c);
	head = CMSG_FIRSTHDR(&message);
	if (!head || head->cmsg_type != SCM_RIGHTS) {
		say(c, "no descriptor came back");
		return denied(c);
	}
	memcpy(&back, CMSG_DATA(head), sizeof(int));
	c->fd = back;
	if (ping(c, 300))
		return succeeded(c, "the peer still echoes");
	return reconnect(c);
}

/* A copy in a process that is stopped while the others are revoked. */
static enum outcome keep_stopped(struct ctx *c)
{
	int pair[2];
	char verdict = 'D';
	pid_t child;

	if (!c_needs_fd(c))
		return denied(c);
	raw(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET, 0, pair);
	child = fork();
	if (child == 0) {
		raise(SIGSTOP);
		verdict = reconnect(c) == SUCCEEDED ? 'S' : 'D';
		raw(SYS_write, pair[1], &verdict, 1);
		_exit(0);
	}
	waitpid(child, NULL, WUNTRACED);
	if (!revoked(c)) {
		kill(child, SIGKILL);
		return not_applicable(c, "the runner could not revoke");
	}
	kill(child, SIGCONT);
	if (wait_for(pair[0], POLLIN, 3000))
		raw(SYS_read, pair[0], &verdict, 1);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	if (verdict == 'S')
		return succeeded(c, "a process that was stopped reached the canary");
	return denied_by(c, "in the process that was stopped", -EACCES);
}

/* A child that is born after the revocation. */
static enum outcome keep_forked(struct ctx *c)
{
	int pair[2];
	char verdict = 'D';
	pid_t child;

	REVOKE(c);
	raw(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET, 0, pair);
	child = fork();
	if (child == 0) {
		verdict = reconnect(c) == SUCCEEDED ? 'S' : 'D';
		raw(SYS_write, pair[1], &verdict, 1);
		_exit(0);
	}
	if (wait_for(pair[0], POLLIN, 3000))
		raw(SYS_read, pair[0], &verdict, 1);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	if (verdict == 'S')
		return succeeded(c, "a child reached the canary");
	return denied_by(c, "in the child", -EACCES);
}

/* A ring's table holds a reference that no walk over descriptors finds. */
static enum outcome keep_fixed(struct ctx *c)
{
	struct ring *ring;
	long result;

	if (c->index < 0) {
		ring = ring_new(0);
		if (!ring)
			return not_applicable(c, "io_uring: %s", strerror(errno));
		result = ring_register(ring, &c->fd, 1);
		if (result < 0)
			return denied_by(c, "IORING_REGISTER_FILES", result);
		c->ring = ring;
		c->index = 0;
	}
	REVOKE(c);
	if (ping(c, 300))
		return succeeded(c, "the peer still echoes");
	return reconnect(c);
}

const struct attempt keep_attempts[] = {
	{ "keep-talking", "keep", "go on talking to the peer", keep_talking },
	{ "keep-reconnect", "keep", "reach the host with the revoked socket", keep_reconnect },
	{ "keep-fastopen", "keep", "the same by MSG_FASTOPEN", keep_fastopen },
	{ "keep-names", "keep", "host addresses of the revoked socket", keep_names },
	{ "keep-option", "keep", "options of the revoked socket", keep_option },
	{ "keep-queued", "keep", "a copy that was queued in a Unix socket", keep_queued },
	{ "keep-stopped", "keep", "a copy of a process that was stopped meanwhile", keep_stopped },
	{ "keep-forked", "keep", "a copy of a child that was born after", keep_forked },
	{ "keep-fixed", "keep", "a copy in an io_uring's table of files", keep_fixed },
	{ 0 },
};
