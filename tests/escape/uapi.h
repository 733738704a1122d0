/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers of the kernel's interface that older headers lack. Each one names the header
 * of Linux that it stands in; they never change once a kernel is out.
 */
#ifndef ESCAPE_UAPI_H
#define ESCAPE_UAPI_H

/* asm-generic/socket.h */
#define E_SO_DEBUG 1
#define E_SO_DONTROUTE 5
#define E_SO_BROADCAST 6
#define E_SO_NO_CHECK 11
#define E_SO_PRIORITY 12
#define E_SO_PEERCRED 17
#define E_SO_BINDTODEVICE 25
#define E_SO_ATTACH_FILTER 26
#define E_SO_DETACH_FILTER 27
#define E_SO_PEERNAME 28
#define E_SO_TIMESTAMP 29
#define E_SO_PEERSEC 31
#define E_SO_SNDBUFFORCE 32
#define E_SO_RCVBUFFORCE 33
#define E_SO_TIMESTAMPNS 35
#define E_SO_MARK 36
#define E_SO_TIMESTAMPING 37
#define E_SO_RXQ_OVFL 40
#define E_SO_WIFI_STATUS 41
#define E_SO_PEEK_OFF 42
#define E_SO_NOFCS 43
#define E_SO_LOCK_FILTER 44
#define E_SO_SELECT_ERR_QUEUE 45
#define E_SO_BUSY_POLL 46
#define E_SO_MAX_PACING_RATE 47
#define E_SO_INCOMING_CPU 49
#define E_SO_ATTACH_BPF 50
#define E_SO_ATTACH_REUSEPORT_CBPF 51
#define E_SO_CNX_ADVICE 53
#define E_SO_MEMINFO 55
#define E_SO_INCOMING_NAPI_ID 56
#define E_SO_COOKIE 57
#define E_SO_PEERGROUPS 59
#define E_SO_ZEROCOPY 60
#define E_SO_TXTIME 61
#define E_SO_BINDTOIFINDEX 62
#define E_SO_PREFER_BUSY_POLL 69
#define E_SO_BUSY_POLL_BUDGET 70
#define E_SO_NETNS_COOKIE 71
#define E_SO_BUF_LOCK 72
#define E_SO_RESERVE_MEM 73
#define E_SO_TXREHASH 74
#define E_SO_RCVMARK 75
#define E_SO_PEERPIDFD 77

/* linux/in.h, linux/netfilter*.h, linux/ip_vs.h */
#define E_IP_TOS 1
#define E_IP_TTL 2
#define E_IP_OPTIONS 4
#define E_IP_PKTINFO 8
#define E_IP_PKTOPTIONS 9
#define E_IP_MTU_DISCOVER 10
#define E_IP_RECVERR 11
#define E_IP_RECVTTL 12
#define E_IP_MTU 14
#define E_IP_FREEBIND 15
#define E_IP_IPSEC_POLICY 16
#define E_IP_XFRM_POLICY 17
#define E_IP_PASSSEC 18
#define E_IP_TRANSPARENT 19
#define E_IP_RECVORIGDSTADDR 20
#define E_IP_MINTTL 21
#define E_IP_CHECKSUM 23
#define E_IP_BIND_ADDRESS_NO_PORT 24
#define E_IP_MULTICAST_IF 32
#define E_IP_ADD_MEMBERSHIP 35
#define E_IP_MCAST_JOIN_GROUP 42
#define E_IP_UNICAST_IF 50
#define E_IP_LOCAL_PORT_RANGE 51
#define E_SO_ORIGINAL_DST 80
#define E_IPT_SO_GET_INFO 64
#define E_IP_VS_SO_GET_INFO 1153

/* linux/in6.h */
#define E_IPV6_ADDRFORM 1
#define E_IPV6_2292PKTINFO 2
#define E_IPV6_2292PKTOPTIONS 6
#define E_IPV6_FLOWINFO 11
#define E_IPV6_UNICAST_HOPS 16
#define E_IPV6_MULTICAST_IF 17
#define E_IPV6_JOIN_GROUP 20
#define E_IPV6_MTU_DISCOVER 23
#define E_IPV6_MTU 24
#define E_IPV6_RECVERR 25
#define E_IPV6_JOIN_ANYCAST 27
#define E_IPV6_AUTOFLOWLABEL 70
#define E_IPV6_FLOWLABEL_MGR 32
#define E_IPV6_FLOWINFO_SEND 33
#define E_IPV6_XFRM_POLICY 35
#define E_IPV6_RECVPKTINFO 49
#define E_IPV6_PKTINFO 50
#define E_IPV6_HOPOPTS 54
#define E_IPV6_RTHDR 57
#define E_IPV6_DSTOPTS 59
#define E_IPV6_PATHMTU 61
#define E_IPV6_DONTFRAG 62
#define E_IPV6_TCLASS 67
#define E_IPV6_ADDR_PREFERENCES 72
#define E_IPV6_MINHOPCOUNT 73
#define E_IPV6_TRANSPARENT 75
#define E_IPV6_UNICAST_IF 76
#define E_IPV6_FREEBIND 78
#define E_IP6T_SO_GET_INFO 64

/* linux/tcp.h */
#define E_TCP_MAXSEG 2
#define E_TCP_SYNCNT 7
#define E_TCP_DEFER_ACCEPT 9
#define E_TCP_WINDOW_CLAMP 10
#define E_TCP_INFO 11
#define E_TCP_CONGESTION 13
#define E_TCP_MD5SIG 14
#define E_TCP_REPAIR 19
#define E_TCP_REPAIR_QUEUE 20
#define E_TCP_QUEUE_SEQ 21
#define E_TCP_FASTOPEN 23
#define E_TCP_TIMESTAMP 24
#define E_TCP_CC_INFO 26
#define E_TCP_SAVE_SYN 27
#define E_TCP_SAVED_SYN 28
#define E_TCP_REPAIR_WINDOW 29
#define E_TCP_FASTOPEN_CONNECT 30
#define E_TCP_ULP 31
#define E_TCP_MD5SIG_EXT 32
#define E_TCP_FASTOPEN_KEY 33
#define E_TCP_FASTOPEN_NO_COOKIE 34
#define E_TCP_ZEROCOPY_RECEIVE 35
#define E_TCP_INQ 36
#define E_TCP_TX_DELAY 37
#define E_TCP_AO_ADD_KEY 38
#define E_TCP_AO_INFO 40
#define E_TCP_AO_GET_KEYS 41
#define E_TCP_RTO_MAX_MS 44
#define E_SOL_TLS 282

/* linux/sockios.h, linux/if_bridge.h, linux/if_vlan.h, linux/kcm.h, linux/wireless.h */
#define E_SIOCADDRT 0x890B
#define E_SIOCDELRT 0x890C
#define E_SIOCGIFNAME 0x8910
#define E_SIOCGIFCONF 0x8912
#define E_SIOCGIFFLAGS 0x8913
#define E_SIOCGIFADDR 0x8915
#define E_SIOCGIFDSTADDR 0x8917
#define E_SIOCGIFBRDADDR 0x8919
#define E_SIOCGIFNETMASK 0x891b
#define E_SIOCGIFMETRIC 0x891d
#define E_SIOCGIFMTU 0x8921
#define E_SIOCGIFHWADDR 0x8927
#define E_SIOCGIFSLAVE 0x8929
#define E_SIOCGIFINDEX 0x8933
#define E_SIOCGIFBR 0x8940
#define E_SIOCGIFTXQLEN 0x8942
#define E_SIOCETHTOOL 0x8946
#define E_SIOCGMIIPHY 0x8947
#define E_SIOCGSKNS 0x894C
#define E_SIOCDARP 0x8953
#define E_SIOCGARP 0x8954
#define E_SIOCSARP 0x8955
#define E_SIOCGIFMAP 0x8970
#define E_SIOCGIFVLAN 0x8982
#define E_SIOCBONDINFOQUERY 0x8994
#define E_SIOCBRADDBR 0x89a0
#define E_SIOCBRDELBR 0x89a1
#define E_SIOCGHWTSTAMP 0x89b1
#define E_SIOCKCMATTACH 0x89e0
#define E_SIOCDEVPRIVATE 0x89f0
#define E_SIOCGIWNAME 0x8b01
#define E_SIOCGSTAMP 0x8906
#define E_AF_KCM 41

/* linux/errqueue.h, linux/net_tstamp.h */
#define E_EE_ORIGIN_ZEROCOPY 5
#define E_EE_CODE_ZEROCOPY_COPIED 1
#define E_TX_SOFTWARE (1u << 1)
#define E_TS_SOFTWARE (1u << 4)
#define E_TS_OPT_CMSG (1u << 10)

/* linux/io_uring.h; the submission entry is 64 bytes, offsets as in struct io_uring_sqe */
#define E_OP_SENDMSG 9
#define E_OP_RECVMSG 10
#define E_OP_ACCEPT 13
#define E_OP_CONNECT 16
#define E_OP_READ 22
#define E_OP_WRITE 23
#define E_OP_SEND 26
#define E_OP_MSG_RING 40
#define E_OP_URING_CMD 46
#define E_OP_SEND_ZC 47
#define E_OP_SENDMSG_ZC 48
#define E_OP_FIXED_FD_INSTALL 54 /* 6.8 */
#define E_OP_BIND 56             /* 6.11 */
#define E_OP_LISTEN 57           /* 6.11 */
#define E_OP_LAST 64
#define E_CMD_GETSOCKOPT 2 /* 6.7 */
#define E_CMD_SETSOCKOPT 3 /* 6.7 */
#define E_CMD_TX_TIMESTAMP 4
#define E_CMD_GETSOCKNAME 5
#define E_SQE_FIXED_FILE 1u
#define E_SQE_ASYNC (1u << 4)
#define E_SETUP_SQPOLL 2u

/* asm-generic/unistd.h */
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#define SYS_io_uring_enter 426
#define SYS_io_uring_register 427
#endif

#endif
