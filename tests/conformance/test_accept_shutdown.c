/* SPDX-License-Identifier: Apache-2.0 */
/* shutdown() of a listener wakes a blocked accept with EINVAL; the socket can
 * listen again. */
#include "conf.h"
#include <pthread.h>

static int result, error;

static void *blocked(void *argument)
{
	result = accept(*(int *)argument, NULL, NULL);
	error = errno;
	return NULL;
}

int main(int argc, char **argv)
{
	uint16_t port = 0;
	pthread_t thread;

	conf_init(argc, argv, 20);
	int listener = conf_listen(&port, 8);
	CHECK(pthread_create(&thread, NULL, blocked, &listener) == 0, "pthread_create");
	conf_sleep(0.1);
	CHECK(shutdown(listener, SHUT_RDWR) == 0, "shutdown");
	pthread_join(thread, NULL);
	CHECK(result == -1 && error == EINVAL, "accept gave %d, %s", result, strerror(error));
	CHECK_ERRNO(accept(listener, NULL, NULL), EINVAL);
	conf_ok("accept wakes");
	conf_refused_soon(port);
	conf_ok("refused");
	CHECK(listen(listener, 8) == 0, "listen again");
	/* A port that the kernel chose is given back by shutdown: ask for the new one. */
	struct sockaddr_storage sa;
	CHECK(getsockname(listener, (struct sockaddr *)&sa, &(socklen_t){ sizeof(sa) }) == 0, "getsockname");
	port = conf_port_of(&sa);
	unsigned id = conf_dial_me(1, "id", port, 0);
	int fd = conf_accept(listener);
	uint64_t number;
	conf_recv_all(fd, &number, sizeof(number));
	conf_send_all(fd, &number, sizeof(number));
	close(fd);
	conf_all_ok(id, 1);
	close(listener);
	conf_ok("listening again");
	return conf_done();
}
