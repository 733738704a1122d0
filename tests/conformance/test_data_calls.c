/* SPDX-License-Identifier: Apache-2.0 */
/* The data calls belong to the kernel: read, write, readv, writev, send, recv with
 * flags, sendmsg, recvmsg, recvmmsg, sendfile, splice, MSG_PEEK, urgent data. */
#include "conf.h"
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>

int main(int argc, char **argv)
{
	unsigned char out[3000], in[3000];
	struct stat st;

	conf_init(argc, argv, 20);
	int fd = conf_dial(CONF_ECHO);
	CHECK(fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode), "fstat");
	conf_pattern(out, 0, sizeof(out));
	struct iovec iov[2] = { { out, 1000 }, { out + 1000, 2000 } }, iin[2] = { { in, 1500 }, { in + 1500, 1500 } };
	CHECK(writev(fd, iov, 2) == 3000, "writev");
	ssize_t n = 0, r;
	while (n < 3000) {
		r = n == 0 ? readv(fd, iin, 2) : read(fd, in + n, sizeof(in) - (size_t)n);
		CHECK(r > 0, "read");
		n += r;
	}
	CHECK(memcmp(in, out, 3000) == 0, "data differ");
	CHECK(write(fd, "abc", 3) == 3, "write");
	CHECK(recv(fd, in, 3, MSG_PEEK | MSG_WAITALL) == 3 && memcmp(in, "abc", 3) == 0, "MSG_PEEK");
	CHECK(recv(fd, in, 3, MSG_WAITALL) == 3 && memcmp(in, "abc", 3) == 0, "MSG_WAITALL");
	CHECK_ERRNO(recv(fd, in, 1, MSG_DONTWAIT), EAGAIN);
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };
	CHECK(sendmsg(fd, &msg, MSG_NOSIGNAL) == 3000, "sendmsg");
	memset(in, 0, sizeof(in));
	struct sockaddr_storage from;
	struct msghdr back = { .msg_iov = iin, .msg_iovlen = 2, .msg_name = &from, .msg_namelen = sizeof(from) };
	CHECK(recvmsg(fd, &back, MSG_WAITALL) == 3000, "recvmsg");
	CHECK(memcmp(in, out, 3000) == 0, "data differ");
	CHECK(back.msg_namelen == 0, "a stream's recvmsg gives no address");
	socklen_t size = sizeof(from);
	CHECK(send(fd, "x", 1, 0) == 1 && recvfrom(fd, in, 1, 0, (struct sockaddr *)&from, &size) == 1, "recvfrom");
	struct iovec one = { in, sizeof(in) };
	struct mmsghdr mm = { .msg_hdr = { .msg_iov = &one, .msg_iovlen = 1 } };
	CHECK(send(fd, "xy", 2, 0) == 2 && recvmmsg(fd, &mm, 1, MSG_WAITFORONE, NULL) == 1 && mm.msg_len >= 1, "recvmmsg");
	if (mm.msg_len == 1)
		conf_recv_all(fd, in, 1);
	conf_ok("read and write in all their forms");

	FILE *file = tmpfile();
	CHECK(file && fwrite(out, 1, sizeof(out), file) == sizeof(out) && fflush(file) == 0, "temporary file");
	off_t at = 0;
	CHECK(sendfile(fd, fileno(file), &at, sizeof(out)) == (ssize_t)sizeof(out), "sendfile");
	memset(in, 0, sizeof(in));
	int pipes[2];
	CHECK(pipe(pipes) == 0, "pipe");
	for (n = 0; n < 3000; n += r) {
		r = splice(fd, NULL, pipes[1], NULL, (size_t)(3000 - n), 0);
		CHECK(r > 0, "splice");
		CHECK(read(pipes[0], in + n, (size_t)r) == r, "read from the pipe");
	}
	CHECK(memcmp(in, out, 3000) == 0, "data differ");
	conf_ok("sendfile and splice");

	FILE *stream = fdopen(dup(fd), "r+");
	CHECK(stream, "fdopen");
	CHECK(fputs("a line\n", stream) >= 0 && fflush(stream) == 0, "fputs");
	char line[32];
	CHECK(fgets(line, sizeof(line), stream) && strcmp(line, "a line\n") == 0, "fgets");
	fclose(stream);
	conf_names(fd, CONF_ECHO);
	conf_ok("stdio");
	close(fd);
	return conf_done();
}
