// SPDX-License-Identifier: GPL-2.0-only
/*
 * /proc/slim_kmod/control, the router's side. One write is 1 to 1024 records;
 * docs/protocol.md, "Control files of SlimKernModule".
 *
 * Entries of /proc are seen in containers, and uid 0 there owns them. So the
 * modes are not what guards them: opener and user must have CAP_NET_ADMIN in
 * the initial user namespace and live in the initial pid namespace.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/errno.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/pid_namespace.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/user_namespace.h>

#include "slim.h"

#define SLIM_RECORD_MAGIC	0x4b53
#define SLIM_RECORD_VERSION	1
#define SLIM_RECORDS_MAX	1024

enum slim_operation {
	SLIM_OP_TAG = 1,
	SLIM_OP_REVOKE = 2,
	SLIM_OP_UNTAG = 3,
};

struct slim_record {
	__le16 magic;
	u8 version;
	u8 op;
	__le32 fd;
	__le64 cookie;
	__le64 value;
	__le64 reserved;
} __packed;

static_assert(sizeof(struct slim_record) == 32);

static struct proc_dir_entry *slim_dir;

int slim_may_control(const struct file *file)
{
	if (!file_ns_capable(file, &init_user_ns, CAP_NET_ADMIN) || !capable(CAP_NET_ADMIN) ||
	    task_active_pid_ns(current) != &init_pid_ns)
		return -EPERM;
	return 0;
}

static bool slim_record_valid(const struct slim_record *record)
{
	if (le16_to_cpu(record->magic) != SLIM_RECORD_MAGIC ||
	    record->version != SLIM_RECORD_VERSION || record->value || record->reserved ||
	    !record->cookie)
		return false;
	switch (record->op) {
	case SLIM_OP_TAG:
	case SLIM_OP_UNTAG:
		return (s32)le32_to_cpu(record->fd) >= 0;
	case SLIM_OP_REVOKE:
		return (s32)le32_to_cpu(record->fd) == -1;
	default:
		return false;
	}
}

/* TAG and UNTAG. */
static int slim_one(const struct slim_record *record)
{
	u64 cookie = le64_to_cpu(record->cookie);
	struct socket *sock;
	int error;

	sock = sockfd_lookup((s32)le32_to_cpu(record->fd), &error);
	if (!sock)
		return error == -ENOTSOCK ? -EPROTOTYPE : error;
	if (record->op == SLIM_OP_TAG)
		error = slim_tag(sock, cookie);
	else
		error = slim_untag(sock, cookie);
	sockfd_put(sock);
	return error;
}

/*
 * A run of REVOKE records is one revocation: one walk through the processes
 * for all of them. Its errors: nobody knows any cookie of it, or no memory.
 */
static int slim_run(const struct slim_record *record, size_t count)
{
	u64 *cookies;
	size_t i;
	int error;

	cookies = kvmalloc_array(count, sizeof(*cookies), GFP_KERNEL);
	if (!cookies)
		return -ENOMEM;
	for (i = 0; i < count; i++)
		cookies[i] = le64_to_cpu(record[i].cookie);
	error = slim_revoke(cookies, count);
	kvfree(cookies);
	if (!error)
		return -ENOENT;
	return min(error, 0);
}

/* How many records were done; *error is why the next was not. */
static size_t slim_records(const struct slim_record *record, size_t count, int *error)
{
	size_t done = 0, run;

	*error = 0;
	while (done < count) {
		if (record[done].op != SLIM_OP_REVOKE) {
			*error = slim_one(&record[done]);
			if (*error)
				return done;
			done++;
			continue;
		}
		for (run = 1; done + run < count; run++)
			if (record[done + run].op != SLIM_OP_REVOKE)
				break;
		*error = slim_run(&record[done], run);
		if (*error && (*error != -ENOENT || (!done && run == count)))
			return done;
		done += run;
	}
	return done;
}

static ssize_t slim_control_write(struct file *file, const char __user *buffer,
				  size_t length, loff_t *at)
{
	size_t count = length / sizeof(struct slim_record), i, done;
	struct slim_record *records;
	int error;

	error = slim_may_control(file);
	if (error)
		return error;
	if (!count || count > SLIM_RECORDS_MAX || length % sizeof(struct slim_record))
		return -EINVAL;
	records = kvmalloc_array(count, sizeof(*records), GFP_KERNEL);
	if (!records)
		return -ENOMEM;
	done = 0;
	error = -EFAULT;
	if (copy_from_user(records, buffer, length))
		goto out;
	error = -EINVAL;
	for (i = 0; i < count; i++)
		if (!slim_record_valid(&records[i]))
			goto out;
	done = slim_records(records, count, &error);
out:
	kvfree(records);
	return done ? (ssize_t)(done * sizeof(struct slim_record)) : error;
}

static int slim_control_open(struct inode *inode, struct file *file)
{
	int error = slim_may_control(file);

	return error ? error : nonseekable_open(inode, file);
}

static const struct proc_ops slim_control_ops = {
	.proc_open = slim_control_open,
	.proc_write = slim_control_write,
	.proc_lseek = noop_llseek,
};

int __init slim_control_init(void)
{
	int error;

	slim_dir = proc_mkdir_mode("slim_kmod", 0500, NULL);
	if (!slim_dir)
		goto error;
	error = slim_report_init(slim_dir);
	if (error)
		goto error_dir;
	if (proc_create("control", 0600, slim_dir, &slim_control_ops))
		return 0;
error_dir:
	proc_remove(slim_dir);
error:
	pr_err("/proc/slim_kmod cannot be made; not loaded\n");
	return -ENOMEM;
}

/* Waits for calls that are inside; open files answer EIO from then on. */
void slim_control_exit(void)
{
	proc_remove(slim_dir);
}
