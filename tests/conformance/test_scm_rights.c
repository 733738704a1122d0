/* SPDX-License-Identifier: Apache-2.0 */
/* A connection and a listener handed to another process over a Unix socket. */
#include "conf.h"

static void serve(int fd)
{
	char block[4096];

	conf_recv_all(fd, block, sizeof(block));
	conf_send_all(fd, block, sizeof(block));
}

int main(int argc, char **argv)
{
	struct sockaddr_storage sa;
	uint16_t port = 0;
	int pair[2];
	char byte = 0;

	conf_init(argc, argv, 30);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
	/* The child exists before the sockets do: it has never seen them. */
	pid_t pid = conf_fork();
	if (pid == 0) {
		int fd = conf_recv_fd(pair[1]);

		conf_names(fd, CONF_ECHO);
		conf_echo(fd, 5000);
		close(fd);
		conf_ok("child: connected socket");
		CHECK(write(pair[1], "k", 1) == 1, "write");

		fd = conf_recv_fd(pair[1]); /* accepted */
		socklen_t size = sizeof(sa);
		CHECK(getpeername(fd, (struct sockaddr *)&sa, &size) == 0, "getpeername");
		CHECK(conf_same(&sa, conf.peer, conf_port_of(&sa)), "accepted, peer %s", conf_text(&sa));
		size = sizeof(sa);
		CHECK(getsockname(fd, (struct sockaddr *)&sa, &size) == 0, "getsockname");
		port = conf_port_of(&sa);
		CHECK(conf_same(&sa, conf.self, port), "accepted, own name %s", conf_text(&sa));
		serve(fd);
		close(fd);
		conf_ok("child: accepted socket");

		int listener = conf_recv_fd(pair[1]);
		size = sizeof(sa);
		CHECK(getsockname(listener, (struct sockaddr *)&sa, &size) == 0, "getsockname");
		CHECK(conf_same(&sa, conf.self, port), "listener is called %s", conf_text(&sa));
		unsigned id = conf_dial_me(3, "echo", port, 0);
		for (int i = 0; i < 3; i++) {
			fd = conf_accept(listener);
			serve(fd);
			close(fd);
		}
		conf_all_ok(id, 3);
		conf_ok("child: listener");

		fd = conf_recv_fd(pair[1]); /* fresh, connected here */
		CHECK(conf_connect(fd, CONF_ECHO) == 0, "connect");
		conf_path(fd);
		conf_names(fd, CONF_ECHO);
		conf_echo(fd, 3000);
		conf_ok("child: fresh socket");
		conf_leave();
	}
	close(pair[1]);

	int fd = conf_dial(CONF_ECHO);
	conf_send_fd(pair[0], fd);
	CHECK(read(pair[0], &byte, 1) == 1, "child ended early");
	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 3000);
	close(fd);

	int listener = conf_listen(&port, 16);
	unsigned id = conf_dial_me(1, "echo", port, 0);
	fd = conf_accept(listener);
	conf_send_fd(pair[0], fd);
	close(fd);
	conf_all_ok(id, 1);

	conf_send_fd(pair[0], listener);
	close(listener);
	fd = conf_socket(0);
	conf_send_fd(pair[0], fd);
	close(fd);
	conf_join(pid);

	/* Passed to ourselves, as some programs do to duplicate. */
	CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0, "socketpair");
	fd = conf_dial(CONF_ECHO);
	conf_send_fd(pair[0], fd);
	close(fd);
	int again = conf_recv_fd(pair[1]);
	conf_names(again, CONF_ECHO);
	conf_echo(again, 3000);
	close(again);
	conf_ok("to ourselves");
	return conf_done();
}
