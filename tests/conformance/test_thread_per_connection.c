/* SPDX-License-Identifier: Apache-2.0 */
/* A thread blocked in accept must hold nobody up: other threads connect, accept,
 * close and ask for names meanwhile (one lock over blocking calls deadlocks). */
#include "conf.h"
#include <pthread.h>

static int quiet, busy;
static int served;

static void *blocked(void *argument)
{
	int fd = accept(quiet, NULL, NULL);

	CHECK(fd >= 0, "accept");
	close(fd);
	return NULL;
}

static void *worker(void *argument)
{
	int fd = *(int *)argument;
	uint64_t id;

	free(argument);
	conf_path(fd);
	conf_recv_all(fd, &id, sizeof(id));
	/* Each worker makes a connection of its own before it answers. */
	int out = conf_dial(CONF_ECHO);
	conf_names(out, CONF_ECHO);
	conf_echo(out, 2000);
	close(out);
	conf_send_all(fd, &id, sizeof(id));
	close(fd);
	__atomic_fetch_add(&served, 1, __ATOMIC_RELAXED);
	return NULL;
}

static void *acceptor(void *argument)
{
	for (int i = 0; i < 60; i++) {
		int fd = accept(busy, NULL, NULL);
		int *box = malloc(sizeof(int));
		pthread_t thread;

		CHECK(fd >= 0 && box, "accept");
		*box = fd;
		CHECK(pthread_create(&thread, NULL, worker, box) == 0, "pthread_create");
		pthread_detach(thread);
	}
	return NULL;
}

static void *connector(void *argument)
{
	for (int i = 0; i < 20; i++) {
		int fd = i & 1 ? conf_dial(CONF_ECHO) : conf_dial_nonblock(CONF_ECHO);

		CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
		conf_names(fd, CONF_ECHO);
		conf_echo(fd, 3000);
		close(fd);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	uint16_t quiet_port = 0, busy_port = 0;
	pthread_t hang[4], accepting, connecting[8];

	conf_init(argc, argv, 40);
	quiet = conf_listen(&quiet_port, 16);
	busy = conf_listen(&busy_port, 128);
	for (int i = 0; i < 4; i++)
		CHECK(pthread_create(&hang[i], NULL, blocked, NULL) == 0, "pthread_create");
	conf_sleep(0.05);
	CHECK(pthread_create(&accepting, NULL, acceptor, NULL) == 0, "pthread_create");
	for (int i = 0; i < 8; i++)
		CHECK(pthread_create(&connecting[i], NULL, connector, NULL) == 0, "pthread_create");
	unsigned id = conf_dial_me(60, "id", busy_port, 0);
	for (int i = 0; i < 8; i++)
		pthread_join(connecting[i], NULL);
	conf_ok("eight threads connect while four sit in accept");
	conf_all_ok(id, 60);
	pthread_join(accepting, NULL);
	conf_ok("a thread per connection, each connecting on");

	/* fork while others are inside the library: the child must not hang. */
	for (int i = 0; i < 8; i++)
		CHECK(pthread_create(&connecting[i], NULL, connector, NULL) == 0, "pthread_create");
	for (int i = 0; i < 10; i++) {
		pid_t pid = conf_fork();

		if (pid == 0) {
			int fd = conf_dial(CONF_ECHO);
			conf_names(fd, CONF_ECHO);
			conf_echo(fd, 1000);
			close(fd);
			conf_leave();
		}
		conf_join(pid);
	}
	for (int i = 0; i < 8; i++)
		pthread_join(connecting[i], NULL);
	conf_ok("fork amid connecting threads");

	id = conf_dial_me(4, "mute", quiet_port, 5000);
	for (int i = 0; i < 4; i++)
		pthread_join(hang[i], NULL);
	struct conf_result r = conf_result(id, 10);
	CHECK(r.eof == 4, "peer saw eof=%d reset=%d", r.eof, r.reset);
	conf_ok("the blocked ones get theirs");
	return conf_done();
}
