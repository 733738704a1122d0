/* SPDX-License-Identifier: Apache-2.0 */
/* dup2 over a connected descriptor ends that connection and leaves no name behind. */
#include "conf.h"

int main(int argc, char **argv)
{
	struct sockaddr_storage sa;
	uint16_t port = 0;
	int fd, pipes[2];

	conf_init(argc, argv, 20);
	/* A pipe over the connection: the peer sees the end. */
	int listener = conf_listen(&port, 8);
	unsigned id = conf_dial_me(1, "mute", port, 5000);
	fd = conf_accept(listener);
	CHECK(pipe(pipes) == 0, "pipe");
	CHECK(dup2(pipes[0], fd) == fd, "dup2");
	struct conf_result r = conf_result(id, 10);
	CHECK(r.eof == 1, "peer saw eof=%d reset=%d timeout=%d", r.eof, r.reset, r.timeout);
	CHECK_ERRNO(getsockname(fd, (struct sockaddr *)&sa, &(socklen_t){ sizeof(sa) }), ENOTSOCK);
	CHECK(write(pipes[1], "x", 1) == 1, "write");
	char byte;
	CHECK(read(fd, &byte, 1) == 1, "the pipe under the number");
	close(fd);
	conf_ok("pipe over an accepted connection");

	fd = conf_dial(CONF_ECHO);
	CHECK(dup2(pipes[0], fd) == fd, "dup2");
	CHECK_ERRNO(getpeername(fd, (struct sockaddr *)&sa, &(socklen_t){ sizeof(sa) }), ENOTSOCK);
	close(fd);
	conf_ok("pipe over a connection");

	/* One connection over another. */
	int a = conf_dial(CONF_ECHO), b = conf_dial(CONF_SINK);
	CHECK(dup2(b, a) == a, "dup2");
	conf_names(a, CONF_SINK);
	conf_names(b, CONF_SINK);
	close(b);
	conf_send_pattern(a, 5000);
	shutdown(a, SHUT_WR);
	conf_expect_sunk(a, 5000);
	close(a);
	conf_ok("connection over connection");

	/* A fresh socket over a connection, then connect it. */
	a = conf_dial(CONF_SINK);
	b = conf_socket(0);
	CHECK(dup2(b, a) == a, "dup2");
	close(b);
	CHECK_ERRNO(getpeername(a, (struct sockaddr *)&sa, &(socklen_t){ sizeof(sa) }), ENOTCONN);
	CHECK(conf_connect(a, CONF_ECHO) == 0, "connect");
	conf_path(a);
	conf_names(a, CONF_ECHO);
	close(a);
	conf_ok("fresh socket over a connection");

	/* A pipe over the listener: connects are refused from then on. */
	CHECK(dup2(pipes[0], listener) == listener, "dup2 over the listener");
	conf_refused_soon(port);
	close(listener);
	conf_ok("pipe over a listener");
	return conf_done();
}
