/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of sockets by file descriptor.
 *
 * A slot says what we put under a descriptor, together with the kernel's name
 * of that socket (SO_COOKIE). Descriptors can be closed and used again behind
 * our back (raw system calls, fclose, close_range in a library): every use
 * therefore compares the cookie first, and a slot that no longer fits counts
 * for nothing. What the table does not know, the worker does (listen.c,
 * slim_adopt).
 *
 * Slots are guarded by a sequence number, not a lock: a signal handler may
 * interrupt a writer, and must not wait for it.
 */
#include "slim.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHUNK 256
#define CHUNKS 4096
#define PATIENCE 4096
#define HIDDEN_BITS 65536
#define HIDE_ABOVE 700 /* out of the way of programs that expect small numbers */

#ifndef SO_COOKIE
#define SO_COOKIE 57
#endif

_Atomic uint32_t slim_generation;
static _Atomic(struct slim_slot *) chunks[CHUNKS];
static _Atomic int highest;
static _Atomic uint8_t hidden_map[HIDDEN_BITS / 8];
static _Atomic uint64_t hidden_cookies[HIDDEN_BITS]; /* touched where there is one */
static _Atomic int owner_pid;

__attribute__((constructor)) static void set_owner(void)
{
	atomic_store(&owner_pid, sys_getpid());
}

bool slim_foreign_process(void)
{
	int owner = atomic_load(&owner_pid);

	return owner && owner != sys_getpid();
}

static struct slim_slot *slot_at(int fd, bool make)
{
	struct slim_slot *chunk, *none = NULL;

	if (fd < 0 || fd >= CHUNK * CHUNKS)
		return NULL;
	chunk = atomic_load_explicit(&chunks[fd / CHUNK], memory_order_acquire);
	if (!chunk && make) {
		void *fresh = mmap(NULL, CHUNK * sizeof(struct slim_slot), PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (fresh == MAP_FAILED)
			return NULL;
		if (atomic_compare_exchange_strong(&chunks[fd / CHUNK], &none, fresh))
			chunk = fresh;
		else {
			munmap(fresh, CHUNK * sizeof(struct slim_slot));
			chunk = none;
		}
	}
	return chunk ? &chunk[fd % CHUNK] : NULL;
}

static bool write_begin(struct slim_slot *slot)
{
	for (int i = 0; i < PATIENCE; i++) {
		uint32_t seq = atomic_load(&slot->seq);

		if (!(seq & 1) && atomic_compare_exchange_weak(&slot->seq, &seq, seq + 1))
			return true;
	}
	return false; /* we interrupted the writer: the cookie will tell */
}

static void write_end(struct slim_slot *slot)
{
	atomic_fetch_add(&slot->seq, 1);
}

#define BODY(slot) ((char *)(slot) + sizeof(_Atomic uint32_t))
#define BODY_SIZE (sizeof(struct slim_slot) - sizeof(_Atomic uint32_t))

bool slim_used(int fd)
{
	struct slim_slot *slot = slot_at(fd, false);

	return slot && slot->state != SLIM_FREE;
}

bool slim_peek(int fd, struct slim_slot *out)
{
	struct slim_slot *slot = slot_at(fd, false);

	if (!slot || slot->state == SLIM_FREE)
		return false;
	for (int i = 0; i < PATIENCE; i++) {
		uint32_t before = atomic_load_explicit(&slot->seq, memory_order_acquire);

		if (before & 1)
			continue;
		memcpy(BODY(out), BODY(slot), BODY_SIZE);
		atomic_thread_fence(memory_order_acquire);
		if (atomic_load_explicit(&slot->seq, memory_order_relaxed) == before)
			return out->state != SLIM_FREE;
	}
	return false;
}

bool slim_get(int fd, struct slim_slot *out)
{
	int saved = errno;
	bool same = slim_peek(fd, out) && (out->cookie == 0 || out->cookie == slim_cookie(fd));

	errno = saved;
	return same;
}

void slim_put(int fd, const struct slim_slot *in)
{
	struct slim_slot *slot = slot_at(fd, true);
	int top = atomic_load(&highest);

	if (!slot || !write_begin(slot))
		return;
	memcpy(BODY(slot), BODY(in), BODY_SIZE);
	write_end(slot);
	while (fd > top && !atomic_compare_exchange_weak(&highest, &top, fd))
		;
}

void slim_clear(int fd)
{
	struct slim_slot *slot = slot_at(fd, false);

	if (!slot || slot->state == SLIM_FREE || !write_begin(slot))
		return;
	memset(BODY(slot), 0, BODY_SIZE);
	write_end(slot);
}

bool slim_claim(int fd, uint8_t from, uint8_t to)
{
	struct slim_slot *slot = slot_at(fd, false);
	bool mine;

	if (!slot || !write_begin(slot))
		return false;
	mine = slot->state == from;
	if (mine)
		slot->state = to;
	write_end(slot);
	return mine;
}

/*
 * The child: what another thread was about to do with a slot, nobody will finish
 * here; and a cold connect that is under way is the parent's to settle. (A warm one
 * has the same two sockets here and there: whoever looks first at its failure
 * connects the overlay's.)
 */
void slim_registry_fork_child(void)
{
	atomic_store(&owner_pid, sys_getpid());
	for (int fd = 0; fd <= atomic_load(&highest); fd++) {
		struct slim_slot *slot = slot_at(fd, false);
		int listening = 0;
		socklen_t len = sizeof(listening);

		if (!slot)
			continue;
		if (atomic_load(&slot->seq) & 1) { /* half written: the worker will tell */
			memset(BODY(slot), 0, BODY_SIZE);
			write_end(slot);
		}
		if (slot->state == SLIM_PENDING_COLD) { /* stays on the overlay (pending.c, slim_swap) */
			slot->state = SLIM_FRESH;
			slot->cookie = 0;
			slot->hidden = -1;
		} else if (slot->state == SLIM_RESOLVING) {
			if (slot->hidden >= 0 &&
			    sys_getsockopt(slot->hidden, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) == 0 && listening) {
				slot->state = SLIM_LISTENER;
			} else {
				slim_unhide(slot->hidden);
				memset(BODY(slot), 0, BODY_SIZE);
			}
		}
	}
}

int slim_highest(void)
{
	return atomic_load(&highest);
}

uint64_t slim_cookie(int fd)
{
	uint64_t cookie = 0;
	socklen_t len = sizeof(cookie);

	if (sys_getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &len) < 0)
		return 0;
	return cookie;
}

/* --- descriptors of our own ------------------------------------------------- */
/* Returns whether it was. */
static bool mark_hidden(int fd, bool on)
{
	uint8_t bit = (uint8_t)(1 << fd % 8);

	if (on)
		return atomic_fetch_or(&hidden_map[fd / 8], bit) & bit;
	return atomic_fetch_and(&hidden_map[fd / 8], (uint8_t)~bit) & bit;
}

bool slim_hidden(int fd)
{
	int saved = errno;

	if (fd < 0 || fd >= HIDDEN_BITS ||
	    !(atomic_load_explicit(&hidden_map[fd / 8], memory_order_relaxed) & (1 << fd % 8)))
		return false;
	if (slim_cookie(fd) == atomic_load(&hidden_cookies[fd]))
		return true;
	/* Closed behind our back: the number is the program's again. */
	if (!slim_foreign_process())
		mark_hidden(fd, false);
	errno = saved;
	return false;
}

int slim_hide(int fd)
{
	int copy = sys_fcntl(fd, F_DUPFD_CLOEXEC, HIDE_ABOVE);

	if (copy < 0) /* a small RLIMIT_NOFILE, or no room up there */
		copy = sys_fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (copy >= HIDDEN_BITS) {
		sys_close(copy);
		errno = EMFILE;
		return -1;
	}
	if (copy >= 0) {
		atomic_store(&hidden_cookies[copy], slim_cookie(copy));
		mark_hidden(copy, true);
	}
	return copy;
}

void slim_unhide(int fd)
{
	/* Of several that let go of it at once, one closes. */
	if (slim_hidden(fd) && mark_hidden(fd, false))
		sys_close(fd);
}

int slim_move_hidden(int fd)
{
	/* A control connection that is not where it was is simply opened again. */
	int copy = slim_control_fd(fd) ? -1 : slim_hide(fd);
	struct slim_slot slot;

	if (!slim_control_fd(fd)) /* without room the slots lose it (-1), and the program has its number */
		for (int i = 0; i <= slim_highest(); i++)
			if (slim_peek(i, &slot) && slot.hidden == fd) {
				slot.hidden = copy;
				slim_put(i, &slot);
			}
	mark_hidden(fd, false);
	return copy;
}
