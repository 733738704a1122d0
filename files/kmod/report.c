// SPDX-License-Identifier: GPL-2.0-only
/*
 * /proc/slim_kmod/{tags,stats,version}: what there is, for an operator. Opener
 * and reader are judged as control.c says: a descriptor may have been passed.
 */
#include <linux/fs.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/timekeeping.h>

#include "slim.h"

struct slim_stats slim_stats;

static u64 slim_loaded;		/* ktime_get_boottime_ns() */

static const char *const slim_call_names[SLIM_CALLS] = {
	[SLIM_CALL_ACCEPT] = "accept",
	[SLIM_CALL_BIND] = "bind",
	[SLIM_CALL_CHOWN] = "chown",
	[SLIM_CALL_CONNECT] = "connect",
	[SLIM_CALL_GETNAME] = "getname",
	[SLIM_CALL_GETSOCKOPT] = "getsockopt",
	[SLIM_CALL_IOCTL] = "ioctl",
	[SLIM_CALL_LISTEN] = "listen",
	[SLIM_CALL_MMAP] = "mmap",
	[SLIM_CALL_RECVMSG] = "recvmsg",
	[SLIM_CALL_SENDMSG] = "sendmsg",
	[SLIM_CALL_SETSOCKOPT] = "setsockopt",
};

static ssize_t slim_report_read(struct file *file, char __user *buffer, size_t length,
				loff_t *at)
{
	int error = slim_may_control(file);

	return error ? error : seq_read(file, buffer, length, at);
}

/* One bucket of the table is one step of the file. */
static void *slim_tags_start(struct seq_file *seq, loff_t *at)
{
	return *at <= SLIM_BUCKETS ? at : NULL;
}

static void *slim_tags_next(struct seq_file *seq, void *where, loff_t *at)
{
	++*at;
	return slim_tags_start(seq, at);
}

static void slim_tags_stop(struct seq_file *seq, void *where)
{
}

static void slim_tag_show(struct slim_tag *tag, void *data)
{
	struct seq_file *seq = data;

	seq_printf(seq, "%llu %s %llu %d\n", tag->cookie,
		   READ_ONCE(tag->state) == SLIM_LIVE ? "live" : "revoked",
		   div_u64(ktime_get_ns() - tag->born, NSEC_PER_MSEC),
		   READ_ONCE(tag->holder));
}

static int slim_tags_show(struct seq_file *seq, void *where)
{
	loff_t at = *(loff_t *)where;

	if (!at)
		seq_puts(seq, "cookie state age_ms holder_pid\n");
	else
		slim_tags_each(at - 1, slim_tag_show, seq);
	return 0;
}

static const struct seq_operations slim_tags_ops = {
	.start = slim_tags_start,
	.next = slim_tags_next,
	.stop = slim_tags_stop,
	.show = slim_tags_show,
};

static int slim_tags_open(struct inode *inode, struct file *file)
{
	int error = slim_may_control(file);

	if (error)
		return error;
	slim_walk_holders();
	return seq_open(file, &slim_tags_ops);
}

static int slim_stats_show(struct seq_file *seq, void *where)
{
	u64 denied = 0;
	unsigned int i;

	for (i = 0; i < SLIM_CALLS; i++)
		denied += atomic64_read(&slim_stats.denied[i]);
	seq_printf(seq, "tags %lld\n", atomic64_read(&slim_stats.tags));
	seq_printf(seq, "tagged_total %lld\n", atomic64_read(&slim_stats.tagged));
	seq_printf(seq, "untagged_total %lld\n", atomic64_read(&slim_stats.untagged));
	seq_printf(seq, "revoked_total %lld\n", atomic64_read(&slim_stats.revoked));
	seq_printf(seq, "closed_total %lld\n", atomic64_read(&slim_stats.closed));
	seq_printf(seq, "leftovers_total %lld\n", atomic64_read(&slim_stats.leftovers));
	seq_printf(seq, "held %u\n", slim_tags_held());
	seq_printf(seq, "denied_total %llu\n", denied);
	for (i = 0; i < SLIM_CALLS; i++)
		seq_printf(seq, "denied_%s %lld\n", slim_call_names[i],
			   atomic64_read(&slim_stats.denied[i]));
	return 0;
}

static int slim_stats_open(struct inode *inode, struct file *file)
{
	int error = slim_may_control(file);

	return error ? error : single_open(file, slim_stats_show, NULL);
}

static int slim_version_show(struct seq_file *seq, void *where)
{
	const char *name;
	unsigned int i;

	seq_printf(seq, "1 %s ", SLIM_VERSION);
	for (i = 0; (name = slim_hook_name(i)); i++)
		seq_printf(seq, "%s%s", i ? "," : "", name);
	/* SLIM_VERSION is the interface's: these two tell builds and loads apart. */
	seq_printf(seq, " srcversion=%s loaded_ns=%llu\n", THIS_MODULE->srcversion ?: "-",
		   slim_loaded);
	return 0;
}

static int slim_version_open(struct inode *inode, struct file *file)
{
	int error = slim_may_control(file);

	return error ? error : single_open(file, slim_version_show, NULL);
}

static const struct proc_ops slim_tags_proc = {
	.proc_open = slim_tags_open,
	.proc_read = slim_report_read,
	.proc_lseek = seq_lseek,
	.proc_release = seq_release,
};

static const struct proc_ops slim_stats_proc = {
	.proc_open = slim_stats_open,
	.proc_read = slim_report_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

static const struct proc_ops slim_version_proc = {
	.proc_open = slim_version_open,
	.proc_read = slim_report_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

int __init slim_report_init(struct proc_dir_entry *dir)
{
	slim_loaded = ktime_get_boottime_ns();
	if (!proc_create("tags", 0600, dir, &slim_tags_proc) ||
	    !proc_create("stats", 0600, dir, &slim_stats_proc) ||
	    !proc_create("version", 0600, dir, &slim_version_proc))
		return -ENOMEM;
	return 0;
}
