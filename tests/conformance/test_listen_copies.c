/* SPDX-License-Identifier: Apache-2.0 */
/* Copies of a listening descriptor, made before and after listen. */
#include "conf.h"

static void serve(int listener, uint16_t port)
{
	unsigned id = conf_dial_me(2, "id", port, 0);
	struct sockaddr_storage sa;
	uint64_t number;

	CHECK(getsockname(listener, (struct sockaddr *)&sa, &(socklen_t){ sizeof(sa) }) == 0, "getsockname");
	CHECK(conf_same(&sa, conf.self, port), "listener is called %s", conf_text(&sa));
	for (int i = 0; i < 2; i++) {
		CHECK(conf_wait(listener, POLLIN, 8000), "not readable");
		int fd = conf_accept(listener);
		conf_recv_all(fd, &number, sizeof(number));
		conf_send_all(fd, &number, sizeof(number));
		close(fd);
	}
	conf_all_ok(id, 2);
}

int main(int argc, char **argv)
{
	uint16_t port = 0;

	conf_init(argc, argv, 30);
	int fd = conf_listen(&port, 16), copy = dup(fd);
	serve(fd, port);
	serve(copy, port);
	close(fd);
	serve(copy, port);
	int far = fcntl(copy, F_DUPFD_CLOEXEC, 300);
	CHECK(far >= 300, "F_DUPFD_CLOEXEC");
	close(copy);
	serve(far, port);
	CHECK(dup2(far, 40) == 40, "dup2");
	close(far);
	serve(40, port);
	close(40);
	conf_refused_soon(port);
	conf_ok("made after listen");

	port = 0;
	fd = conf_bound(&port, 0);
	copy = dup(fd);
	CHECK(listen(copy, 16) == 0, "listen on the copy");
	serve(fd, port);
	serve(copy, port);
	close(copy);
	serve(fd, port);
	close(fd);
	conf_refused_soon(port);
	conf_ok("made before listen");
	return conf_done();
}
