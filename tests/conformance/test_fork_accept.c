/* SPDX-License-Identifier: Apache-2.0 */
/* fork around listen and accept: fork per connection, listener inherited. */
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
	pid_t pid;
	int listener, fd;

	conf_init(argc, argv, 30);
	listener = conf_listen(&port, 64);
	unsigned id = conf_dial_me(12, "echo", port, 0);
	pid_t children[12];
	for (int i = 0; i < 12; i++) {
		fd = conf_accept(listener);
		children[i] = conf_fork();
		if (children[i] == 0) {
			close(listener);
			socklen_t size = sizeof(sa);
			CHECK(getsockname(fd, (struct sockaddr *)&sa, &size) == 0, "getsockname");
			CHECK(conf_same(&sa, conf.self, port), "child sees %s", conf_text(&sa));
			size = sizeof(sa);
			CHECK(getpeername(fd, (struct sockaddr *)&sa, &size) == 0, "getpeername");
			CHECK(conf_same(&sa, conf.peer, conf_port_of(&sa)), "child sees peer %s", conf_text(&sa));
			serve(fd);
			conf_leave();
		}
		close(fd);
	}
	for (int i = 0; i < 12; i++)
		conf_join(children[i]);
	conf_all_ok(id, 12);
	conf_ok("a child per connection");

	/* The child accepts, the parent does not. */
	pid = conf_fork();
	if (pid == 0) {
		id = conf_dial_me(3, "echo", port, 0);
		for (int i = 0; i < 3; i++) {
			fd = conf_accept(listener);
			serve(fd);
			close(fd);
		}
		conf_all_ok(id, 3);
		conf_leave();
	}
	conf_join(pid);
	conf_ok("accepted by the child");

	/* The child is gone; the parent's listener is as good as before. */
	id = conf_dial_me(3, "echo", port, 0);
	for (int i = 0; i < 3; i++) {
		fd = conf_accept(listener);
		serve(fd);
		close(fd);
	}
	conf_all_ok(id, 3);
	conf_ok("accepted by the parent after the child died");

	/* Bound by the parent, listened to by the child. */
	uint16_t other = 0;
	int bound = conf_bound(&other, 0);
	pid = conf_fork();
	if (pid == 0) {
		CHECK(listen(bound, 8) == 0, "listen in the child");
		id = conf_dial_me(2, "echo", other, 0);
		for (int i = 0; i < 2; i++) {
			fd = conf_accept(bound);
			serve(fd);
			close(fd);
		}
		conf_all_ok(id, 2);
		conf_leave();
	}
	conf_join(pid);
	close(bound);
	/* The parent closes its copy first: the child goes on. */
	pid = conf_fork();
	if (pid == 0) {
		conf_sleep(0.05);
		id = conf_dial_me(2, "echo", port, 0);
		for (int i = 0; i < 2; i++) {
			fd = conf_accept(listener);
			serve(fd);
			close(fd);
		}
		conf_all_ok(id, 2);
		conf_leave();
	}
	close(listener);
	conf_join(pid);
	conf_ok("the listener lives as long as any copy");

	conf_refused_soon(port);
	conf_ok("refused after the last copy is closed");
	return conf_done();
}
