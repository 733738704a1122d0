/* SPDX-License-Identifier: Apache-2.0 */
/* Options set before connect hold on the connected socket, and still can be
 * changed there. */
#include "conf.h"
#include <netinet/ip.h>

struct option {
	int level, name, value;
	const char *text;
};

static const struct option options[] = {
	{ IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY" },
	{ SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE" },
	{ IPPROTO_TCP, TCP_KEEPIDLE, 77, "TCP_KEEPIDLE" },
	{ IPPROTO_TCP, TCP_KEEPINTVL, 11, "TCP_KEEPINTVL" },
	{ IPPROTO_TCP, TCP_KEEPCNT, 5, "TCP_KEEPCNT" },
	{ IPPROTO_TCP, TCP_USER_TIMEOUT, 12345, "TCP_USER_TIMEOUT" },
	{ IPPROTO_TCP, TCP_MAXSEG, 1000, NULL }, /* set, not compared: negotiated */
	{ SOL_SOCKET, SO_PRIORITY, 3, "SO_PRIORITY" },
	{ SOL_SOCKET, SO_OOBINLINE, 1, "SO_OOBINLINE" },
	{ SOL_SOCKET, SO_RCVLOWAT, 1, "SO_RCVLOWAT" },
	{ SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR" },
	{ IPPROTO_TCP, TCP_QUICKACK, 1, NULL },
	{ IPPROTO_TCP, TCP_NOTSENT_LOWAT, 65536, "TCP_NOTSENT_LOWAT" },
};
#define COUNT (sizeof(options) / sizeof(options[0]))

static void set_all(int fd)
{
	for (size_t i = 0; i < COUNT; i++)
		CHECK(setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int)) == 0,
		      "setting option %zu (%s)", i, options[i].text ? options[i].text : "-");
}

static void check_all(int fd, const char *when)
{
	for (size_t i = 0; i < COUNT; i++) {
		int value = -1;
		socklen_t size = sizeof(value);

		if (!options[i].text)
			continue;
		CHECK(getsockopt(fd, options[i].level, options[i].name, &value, &size) == 0, "reading %s",
		      options[i].text);
		CHECK(value == options[i].value, "%s: %s is %d, was set to %d", when, options[i].text, value,
		      options[i].value);
	}
}

static int get(int fd, int level, int name)
{
	int value = -1;
	socklen_t size = sizeof(value);

	CHECK(getsockopt(fd, level, name, &value, &size) == 0, "getsockopt %d %d", level, name);
	return value;
}

int main(int argc, char **argv)
{
	struct linger linger = { .l_onoff = 1, .l_linger = 3 }, back;
	struct timeval wait = { .tv_usec = 200000 }, wait_back;
	int rcv = 200000, snd = 150000, tos = IPTOS_LOWDELAY, fd;
	socklen_t size;
	char byte;

	conf_init(argc, argv, 30);
	for (int round = 0; round < 4; round++) {
		bool nonblock = round & 1;
		const char *when = nonblock ? "non-blocking" : "blocking";

		fd = conf_socket(nonblock ? SOCK_NONBLOCK : 0);
		set_all(fd);
		CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &rcv, sizeof(rcv)) == 0, "SO_RCVBUF");
		CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &snd, sizeof(snd)) == 0, "SO_SNDBUF");
		CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)) == 0, "SO_LINGER");
		CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) == 0, "SO_RCVTIMEO");
		CHECK(setsockopt(fd, IPPROTO_IP, IP_TOS, &tos, sizeof(tos)) == 0, "IP_TOS");
		int rcv_was = get(fd, SOL_SOCKET, SO_RCVBUF), snd_was = get(fd, SOL_SOCKET, SO_SNDBUF);
		/* IP_TOS changes SO_PRIORITY: set it last, as set_all did before. */
		int priority = 3;
		CHECK(setsockopt(fd, SOL_SOCKET, SO_PRIORITY, &priority, sizeof(priority)) == 0, "SO_PRIORITY");
		int r = conf_connect(fd, CONF_ECHO);
		CHECK(r == 0 || (nonblock && errno == EINPROGRESS), "connect");
		CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
		conf_path(fd);
		check_all(fd, when);
		CHECK(get(fd, SOL_SOCKET, SO_RCVBUF) == rcv_was, "%s: SO_RCVBUF %d, was %d", when,
		      get(fd, SOL_SOCKET, SO_RCVBUF), rcv_was);
		CHECK(get(fd, SOL_SOCKET, SO_SNDBUF) == snd_was, "%s: SO_SNDBUF %d, was %d", when,
		      get(fd, SOL_SOCKET, SO_SNDBUF), snd_was);
		CHECK(get(fd, IPPROTO_IP, IP_TOS) == tos, "%s: IP_TOS", when);
		size = sizeof(back);
		CHECK(getsockopt(fd, SOL_SOCKET, SO_LINGER, &back, &size) == 0, "SO_LINGER");
		CHECK(back.l_onoff && back.l_linger == 3, "%s: SO_LINGER %d %d", when, back.l_onoff, back.l_linger);
		size = sizeof(wait_back);
		CHECK(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait_back, &size) == 0, "SO_RCVTIMEO");
		CHECK(wait_back.tv_sec == 0 && wait_back.tv_usec >= 200000 && wait_back.tv_usec <= 208000,
		      "%s: SO_RCVTIMEO %ld us", when, (long)wait_back.tv_usec);
		conf_nonblock(fd, false);
		double start = conf_now();
		CHECK_ERRNO(recv(fd, &byte, 1, 0), EAGAIN);
		CHECK(conf_now() - start > 0.15 && conf_now() - start < 2, "SO_RCVTIMEO took %.3f s", conf_now() - start);
		conf_echo(fd, 5000);
		close(fd);
	}
	conf_ok("set before connect");

	fd = conf_dial(CONF_ECHO);
	set_all(fd);
	check_all(fd, "set after connect");
	conf_echo(fd, 5000);
	close(fd);
	conf_ok("set after connect");

	/* Defaults stay the defaults. */
	int plain = conf_socket(0);
	fd = conf_dial(CONF_ECHO);
	size = sizeof(back);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_LINGER, &back, &size) == 0, "SO_LINGER");
	CHECK(!back.l_onoff, "a connection begins with SO_LINGER on");
	CHECK(get(fd, IPPROTO_TCP, TCP_NODELAY) == 0, "TCP_NODELAY is on by itself");
	CHECK(get(fd, SOL_SOCKET, SO_KEEPALIVE) == 0, "SO_KEEPALIVE is on by itself");
	CHECK(get(fd, IPPROTO_TCP, TCP_KEEPIDLE) == get(plain, IPPROTO_TCP, TCP_KEEPIDLE), "TCP_KEEPIDLE");
	CHECK(get(fd, SOL_SOCKET, SO_REUSEADDR) == 0, "SO_REUSEADDR is on by itself");
	close(fd);
	close(plain);
	conf_ok("defaults");

	char name[16] = "cubic", got[32] = "";
	fd = conf_socket(0);
	if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, 5) == 0) {
		CHECK(conf_connect(fd, CONF_ECHO) == 0, "connect");
		size = sizeof(got);
		CHECK(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, got, &size) == 0, "TCP_CONGESTION");
		CHECK(strcmp(got, "cubic") == 0, "TCP_CONGESTION is %s", got);
	}
	close(fd);
	conf_ok("TCP_CONGESTION");
	return conf_done();
}
