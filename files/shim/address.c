/* SPDX-License-Identifier: Apache-2.0 */
/* Socket addresses to the 16-byte form of docs/protocol.md, and back. */
#include "slim.h"

static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };

bool slim_from_sockaddr(const struct sockaddr *addr, socklen_t len, uint8_t out[16], uint16_t *port)
{
	/* A pointer into the first page is the kernel's to refuse (EFAULT). */
	if ((uintptr_t)addr < 4096 || len < sizeof(sa_family_t))
		return false;
	if (addr->sa_family == AF_INET && len >= sizeof(struct sockaddr_in)) {
		const struct sockaddr_in *in = (const void *)addr;

		memcpy(out, mapped, sizeof(mapped));
		memcpy(out + 12, &in->sin_addr, 4);
		*port = ntohs(in->sin_port);
		return true;
	}
	if (addr->sa_family == AF_INET6 && len >= sizeof(struct sockaddr_in6) - sizeof(uint32_t)) {
		const struct sockaddr_in6 *in6 = (const void *)addr;

		memcpy(out, &in6->sin6_addr, 16);
		*port = ntohs(in6->sin6_port);
		return true;
	}
	return false;
}

socklen_t slim_make_sockaddr(const uint8_t addr[16], uint16_t port, int family, struct sockaddr_storage *out)
{
	memset(out, 0, sizeof(*out));
	if (family == AF_INET6) {
		struct sockaddr_in6 *in6 = (void *)out;

		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(port);
		memcpy(&in6->sin6_addr, addr, 16);
		return sizeof(*in6);
	}
	struct sockaddr_in *in = (void *)out;

	in->sin_family = AF_INET;
	in->sin_port = htons(port);
	memcpy(&in->sin_addr, addr + 12, 4);
	return sizeof(*in);
}

/* As the kernel does: cut to the caller's room, report the whole length. */
void slim_to_sockaddr(const uint8_t addr[16], uint16_t port, int family, struct sockaddr *out, socklen_t *len)
{
	struct sockaddr_storage whole;
	socklen_t size = slim_make_sockaddr(addr, port, family, &whole);

	memcpy(out, &whole, *len < size ? *len : size);
	*len = size;
}

bool slim_is_loopback(const uint8_t addr[16])
{
	static const uint8_t one[16] = { [15] = 1 };

	if (memcmp(addr, mapped, sizeof(mapped)) == 0)
		return addr[12] == 127;
	return memcmp(addr, one, sizeof(one)) == 0;
}

bool slim_is_any(const uint8_t addr[16])
{
	static const uint8_t zero[16];

	return memcmp(addr, zero, 16) == 0 || (memcmp(addr, mapped, 12) == 0 && memcmp(addr + 12, zero, 4) == 0);
}
