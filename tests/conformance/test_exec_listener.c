/* SPDX-License-Identifier: Apache-2.0 */
/* After exec an inherited listener has its name and accepts, as with systemd
 * socket activation, nginx upgrades and inetd. */
#include "conf.h"

static void serve(int listener, int n)
{
	char block[4096];

	for (int i = 0; i < n; i++) {
		int fd = conf_accept(listener);

		conf_recv_all(fd, block, sizeof(block));
		conf_send_all(fd, block, sizeof(block));
		close(fd);
	}
}

static int get(int fd, int name)
{
	int value = -1;
	socklen_t size = sizeof(value);

	CHECK(getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0, "getsockopt %d", name);
	return value;
}

static int second_life(int listener, uint16_t port)
{
	struct sockaddr_storage sa;
	socklen_t size = sizeof(sa);

	CHECK(getsockname(listener, (struct sockaddr *)&sa, &size) == 0, "getsockname");
	CHECK(conf_same(&sa, conf.self, port), "listener is called %s after exec", conf_text(&sa));
	CHECK(get(listener, SO_ACCEPTCONN) == 1, "SO_ACCEPTCONN");
	CHECK(get(listener, SO_TYPE) == SOCK_STREAM, "SO_TYPE");
	CHECK(get(listener, SO_DOMAIN) == conf.family, "SO_DOMAIN");
	CHECK(listen(listener, 32) == 0, "listen again");
	conf_nonblock(listener, true);
	CHECK_ERRNO(accept(listener, NULL, NULL), EAGAIN);
	unsigned id = conf_dial_me(4, "echo", port, 0);
	CHECK(conf_wait(listener, POLLIN, 8000), "not readable");
	conf_nonblock(listener, false);
	serve(listener, 4);
	conf_all_ok(id, 4);
	return 0;
}

int main(int argc, char **argv)
{
	conf_init(argc, argv, 30);
	if (argc == 6)
		return second_life(atoi(argv[4]), (uint16_t)atoi(argv[5]));

	char self[4096], number[16], port_text[16];
	char *args[] = { self, argv[1], argv[2], "--fd", number, port_text, NULL };
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	CHECK(n > 0, "readlink");
	self[n] = 0;

	for (int round = 0; round < 3; round++) {
		uint16_t port = 0;
		int listener = conf_listen(&port, 32);
		pid_t pid;

		if (round == 1) { /* used before exec */
			unsigned id = conf_dial_me(2, "echo", port, 0);
			serve(listener, 2);
			conf_all_ok(id, 2);
		}
		if (round == 2) { /* under another number, as activation does */
			CHECK(dup2(listener, 63) == 63, "dup2");
			close(listener);
			listener = 63;
		}
		snprintf(number, sizeof(number), "%d", listener);
		snprintf(port_text, sizeof(port_text), "%u", port);
		pid = fork();
		if (pid == 0) {
			execv(self, args);
			_exit(9);
		}
		conf_join(pid);
		/* The old program goes on with its copy. */
		unsigned id = conf_dial_me(2, "echo", port, 0);
		serve(listener, 2);
		conf_all_ok(id, 2);
		close(listener);
		conf_ok("round %d", round);
	}
	/* The parent leaves: only the new program has the listener. */
	uint16_t port = 0;
	int listener = conf_listen(&port, 32);
	snprintf(number, sizeof(number), "%d", listener);
	snprintf(port_text, sizeof(port_text), "%u", port);
	pid_t pid = fork();
	if (pid == 0) {
		execv(self, args);
		_exit(9);
	}
	close(listener);
	conf_join(pid);
	conf_ok("handed over");
	return conf_done();
}
