/* SPDX-License-Identifier: Apache-2.0 */
/* The program's descriptor table holds no listener of another network namespace,
 * and no more sockets of that kind than it has connections. */
#include "conf.h"
#include <sys/syscall.h>

int main(int argc, char **argv)
{
	uint16_t port = 0;
	uint64_t ours = 0;
	socklen_t size = sizeof(ours);
	int foreign = 0;

	conf_init(argc, argv, 20);
	int listener = conf_listen(&port, 16);
	int a = conf_dial(CONF_ECHO), b = conf_dial_nonblock(CONF_ECHO);
	CHECK(conf_wait(b, POLLOUT, 8000) && conf_so_error(b) == 0, "connect");
	unsigned id = conf_dial_me(1, "mute", port, 3000);
	int c = conf_accept(listener);
	int fresh = conf_socket(0);
	CHECK(getsockopt(fresh, SOL_SOCKET, CONF_SO_NETNS_COOKIE, &ours, &size) == 0, "SO_NETNS_COOKIE");

	for (int fd = 0; fd < 4096; fd++) {
		uint64_t its = 0;
		int listening = 0, domain = 0;

		/* The raw calls: what the kernel says, whoever interposes. */
		size = sizeof(its);
		if (syscall(SYS_getsockopt, fd, SOL_SOCKET, CONF_SO_NETNS_COOKIE, &its, &size) < 0)
			continue;
		if (its == ours)
			continue;
		size = sizeof(domain);
		syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
		size = sizeof(listening);
		syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size);
		CHECK(domain == AF_INET || domain == AF_INET6, "descriptor %d: a host socket of family %d", fd, domain);
		CHECK(!listening, "descriptor %d: a host listener", fd);
		foreign++;
	}
	CHECK(foreign <= 3, "%d host sockets for three connections", foreign);
	close(a);
	close(b);
	close(c);
	conf_result(id, 10);
	conf_ok("%d host sockets for three connections, no listener", foreign);
	return conf_done();
}
