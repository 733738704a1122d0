/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel's structures, as far as these programs read them. Only names
 * count: libbpf finds each member's place in the running kernel's BTF when the
 * object is loaded (CO-RE), so that one object serves 5.14 to 6.12 and later.
 */
#ifndef SLIM_BPF_KERNEL_H
#define SLIM_BPF_KERNEL_H

#include <linux/bpf.h>

/* include/linux/socket.h, include/linux/sched.h, uapi/linux/magic.h, uapi/linux/stat.h */
#define AF_INET 2
#define AF_KCM 41
#define SIOCKCMATTACH 0x89e0 /* uapi/linux/kcm.h */
#define PF_KTHREAD 0x00200000
#define SOCKFS_MAGIC 0x534f434b
#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define IPPROTO_TCP 6
#define EPERM 1
#define ECONNABORTED 103

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net;
struct bpf_local_storage;

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_addr {
	union {
		__u32 u6_addr32[4];
	} in6_u;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
	struct bpf_local_storage *sk_bpf_storage;
};

struct socket {
	struct sock *sk;
};

struct msghdr {
	void *msg_name;
	unsigned int msg_flags;
	unsigned long msg_controllen;
};

struct super_block {
	unsigned long s_magic;
};

struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
};

/* net/socket.c: a socket and its inode are one allocation. */
struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
};

struct dentry {
	struct inode *d_inode;
};

struct path {
	struct dentry *dentry;
};

struct file {
	struct inode *f_inode;
};

struct nsproxy {
	struct net *net_ns;
};

struct task_struct {
	unsigned int flags;
	int tgid;
	struct nsproxy *nsproxy;
};

struct io_uring_cmd {
	struct file *file;
	__u32 cmd_op;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct sock *sk;
	void *value;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

#pragma clang attribute pop

#endif
