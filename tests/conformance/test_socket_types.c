/* SPDX-License-Identifier: Apache-2.0 */
/* socket() in all the spellings that programs use; what a fresh socket answers. */
#include "conf.h"

static int get(int fd, int name)
{
	int value = -1;
	socklen_t size = sizeof(value);

	CHECK(getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0, "getsockopt %d", name);
	return value;
}

int main(int argc, char **argv)
{
	static const int types[] = { SOCK_STREAM, SOCK_STREAM | SOCK_CLOEXEC, SOCK_STREAM | SOCK_NONBLOCK,
				     SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC };
	static const int protocols[] = { 0, IPPROTO_TCP };

	conf_init(argc, argv, 20);
	for (int t = 0; t < 4; t++) {
		for (int p = 0; p < 2; p++) {
			int fd = socket(conf.family, types[t], protocols[p]);
			CHECK(fd >= 0, "socket");
			CHECK(get(fd, SO_TYPE) == SOCK_STREAM, "SO_TYPE");
			CHECK(get(fd, SO_DOMAIN) == conf.family, "SO_DOMAIN");
			CHECK(get(fd, SO_PROTOCOL) == IPPROTO_TCP, "SO_PROTOCOL");
			CHECK(get(fd, SO_ACCEPTCONN) == 0, "SO_ACCEPTCONN");
			int r = conf_connect(fd, CONF_ECHO);
			CHECK(r == 0 || ((types[t] & SOCK_NONBLOCK) && errno == EINPROGRESS), "connect");
			CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
			conf_path(fd);
			conf_names(fd, CONF_ECHO);
			CHECK(get(fd, SO_TYPE) == SOCK_STREAM, "SO_TYPE, connected");
			CHECK(get(fd, SO_DOMAIN) == conf.family, "SO_DOMAIN, connected");
			CHECK(get(fd, SO_PROTOCOL) == IPPROTO_TCP, "SO_PROTOCOL, connected");
			CHECK(get(fd, SO_ACCEPTCONN) == 0, "SO_ACCEPTCONN, connected");
			CHECK_ERRNO(setsockopt(fd, SOL_SOCKET, SO_TYPE, &r, sizeof(r)), ENOPROTOOPT);
			struct tcp_info info;
			socklen_t size = sizeof(info);
			CHECK(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0, "TCP_INFO");
			CHECK(info.tcpi_state == TCP_ESTABLISHED, "TCP_INFO says state %u", info.tcpi_state);
			conf_echo(fd, 1000);
			close(fd);
		}
	}
	CHECK_ERRNO(socket(AF_INET, SOCK_STREAM, IPPROTO_UDP), EPROTONOSUPPORT);
	CHECK_ERRNO(socket(AF_INET, 77, 0), EINVAL);
	CHECK_ERRNO(socket(9999, SOCK_STREAM, 0), EAFNOSUPPORT);
	conf_ok("socket");
	return conf_done();
}
