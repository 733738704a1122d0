/* SPDX-License-Identifier: Apache-2.0 */
/* Prefork servers: four acceptors on one listener, each connection answered with
 * its own number. Blocking accept, poll, epoll, EPOLLEXCLUSIVE; and threads. */
#include "conf.h"
#include <pthread.h>

static void answer(int fd)
{
	uint64_t id;

	conf_path(fd);
	conf_recv_all(fd, &id, sizeof(id));
	conf_send_all(fd, &id, sizeof(id));
	close(fd);
}

static void acceptor(int listener, int way)
{
	int ep = -1;

	if (way >= 2) {
		struct epoll_event e = { .events = EPOLLIN | (way == 3 ? EPOLLEXCLUSIVE : 0) };

		ep = epoll_create1(0);
		CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e) == 0, "ADD");
	}
	for (;;) {
		struct epoll_event e;
		int fd;

		if (way == 1)
			conf_wait(listener, POLLIN, 8000);
		else if (way >= 2)
			epoll_wait(ep, &e, 1, 8000);
		fd = accept(listener, NULL, NULL);
		if (fd < 0) {
			CHECK(way > 0 && errno == EAGAIN, "accept");
			continue;
		}
		answer(fd);
	}
}

static void *thread(void *argument)
{
	int listener = *(int *)argument;

	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			return NULL; /* shut down */
		answer(fd);
	}
}

int main(int argc, char **argv)
{
	static const char *ways[] = { "blocking accept", "poll", "epoll", "EPOLLEXCLUSIVE" };

	conf_init(argc, argv, 60);
	for (int way = 0; way < 4; way++) {
		uint16_t port = 0;
		int listener = conf_listen(&port, 256);
		pid_t children[4];

		conf_nonblock(listener, way > 0);
		for (int i = 0; i < 4; i++) {
			children[i] = conf_fork();
			if (children[i] == 0)
				acceptor(listener, way);
		}
		for (int round = 0; round < 5; round++)
			conf_all_ok(conf_dial_me(40, "id", port, 0), 40);
		for (int i = 0; i < 4; i++) {
			int status;

			CHECK(waitpid(children[i], &status, WNOHANG) == 0, "an acceptor died");
			kill(children[i], SIGKILL);
			waitpid(children[i], &status, 0);
		}
		close(listener);
		conf_ok("%s", ways[way]);
	}

	uint16_t port = 0;
	int listener = conf_listen(&port, 256);
	pthread_t threads[4];
	for (int i = 0; i < 4; i++)
		CHECK(pthread_create(&threads[i], NULL, thread, &listener) == 0, "pthread_create");
	for (int round = 0; round < 5; round++)
		conf_all_ok(conf_dial_me(40, "id", port, 0), 40);
	CHECK(shutdown(listener, SHUT_RDWR) == 0, "shutdown of the listener");
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	close(listener);
	conf_ok("four threads; shutdown wakes them");
	return conf_done();
}
