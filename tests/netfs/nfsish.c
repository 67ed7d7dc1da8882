/* nfsish: a FUSE file system that imitates an NFSv3 client, one process for each "node".
 *
 * Handles, not paths: what a client has looked up stays what it is when another node renames it, and is ESTALE
 * when another node removes it. The kernel caches nothing but pages (all timeouts 0); attributes, dentries
 * (negative ones too) and their verifiers are kept here by the rules of Linux's fs/nfs/dir.c: a dentry is good
 * while the parent's cached change time is what it was at the lookup; that is asked again after
 * acdirmin..acdirmax, or at opendir, or after an own change in the folder. open(2) asks for the file's
 * attributes (close-to-open). An open file that is removed becomes .nfsXXXX (silly rename).
 *
 *   nfsish BACKING MOUNTPOINT KNOBS-FILE [fuse options]
 *
 * KNOBS-FILE has lines name=value, and is read again whenever it changes, which sets all counts to 0:
 *
 *   acregmin acregmax acdirmin acdirmax   seconds that attributes are kept (3 60 30 60); all 0: noac
 *   noneg=1          no negative dentries
 *   opendir_cto=0    opendir does not ask the server
 *   gran=1           times of whole seconds
 *   skew=N           the server's clock is N s ahead
 *   delay=1          write-behind until close, fsync, or 30 s
 *   append=atomic    O_APPEND appends at the end that the server knows, as on a local disk
 *   dtype=0          d_type is unknown
 *   statfs=zero      statfs answers nothing but zeros
 *   uid=N            files are shown as this user's
 *   flock=local      flock is the kernel's, else the server's; flock_errno, plock_errno=N: refused
 *   link_errno=N     link fails with this errno, always
 *   op_ms, fsync_ms, rmdir_ms=N           how long each request, or only those, takes
 *
 *   link_retrans, mkdir_retrans, rename_retrans, unlink_retrans=K
 *                    each K-th that succeeds is told as EEXIST or ENOENT: the answer was lost, the request sent
 *                    again, and the server no longer knew that it had done it
 *   fail_op=OP fail_errno=N [fail_at=K]   the K-th request of this kind fails and is not done; OP: lookup
 *                    getattr setattr open create read write flush fsync fsyncdir opendir link mkdir rename
 *                    symlink unlink rmdir (flush is the answer to close)
 *   times=N          ... that many times (failures: 1; retransmissions: always)
 *   match=PATTERN    ... only those of names that match the shell pattern
 *
 * Each request that is told wrongly or fails so is a line "disturbed: OP NAME" on stderr.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 35
#include <fuse_lowlevel.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dirent.h>
#include <unistd.h>
#include <time.h>
#include <sys/stat.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

struct buf {
    struct buf *next;
    off_t off;
    size_t len;
    char *data;
};
struct name {
    struct name *next;
    char *s;
    ino_t ino;
    int type;
};
struct ino;
struct dent {
    struct dent *next;
    char *name;
    struct ino *to;
    unsigned long ver;
};
struct ino {
    struct ino *next;
    dev_t dev;
    ino_t ino;
    int fd;
    struct stat st;
    double at, timeo;
    unsigned long ver;
    int dead, opens;
    struct dent *dents;
    struct name *list;
    unsigned long listver;
    int listed;
    struct buf *dirty;
    double dirty_at;
    int wfd;
    struct ino *sdir;
    char *sname;
    const char *called; /* the name by which it was last looked up */
};
struct file {
    struct ino *i;
    int fd;
};

static pthread_mutex_t L = PTHREAD_MUTEX_INITIALIZER;
static struct ino *table[65536], *root;
static const char *knobfile;
static struct {
    double acregmin, acregmax, acdirmin, acdirmax;
    int noneg, opendir_cto, gran, delay, dtype, link_errno, flock_errno, plock_errno;
    int append_atomic, statfs_zero, flock_local;
    int op_ms, fsync_ms, rmdir_ms;
    int link_retrans, mkdir_retrans, rename_retrans, unlink_retrans, fail_errno, fail_at, times;
    long skew, uid;
    char match[64], fail_op[16];
} K;
static int n_link, n_mkdir, n_rename, n_unlink, n_fail, n_told;
static unsigned long sillies;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}
static void ms(int n) {
    if (n > 0)
        usleep(n * 1000);
}
static void knob(const char *name, const char *value) {
#define NUMBER(n)                                                                                            \
    if (!strcmp(name, #n))                                                                                   \
        K.n = atof(value);
#define WORD(n)                                                                                              \
    if (!strcmp(name, #n))                                                                                   \
        snprintf(K.n, sizeof K.n, "%s", value);
    NUMBER(acregmin) NUMBER(acregmax) NUMBER(acdirmin) NUMBER(acdirmax)
    NUMBER(noneg) NUMBER(opendir_cto) NUMBER(gran) NUMBER(delay) NUMBER(dtype) NUMBER(skew) NUMBER(uid)
    NUMBER(link_errno) NUMBER(flock_errno) NUMBER(plock_errno)
    NUMBER(op_ms) NUMBER(fsync_ms) NUMBER(rmdir_ms)
    NUMBER(link_retrans) NUMBER(mkdir_retrans) NUMBER(rename_retrans) NUMBER(unlink_retrans)
    NUMBER(fail_errno) NUMBER(fail_at) NUMBER(times)
    WORD(match) WORD(fail_op)
    if (!strcmp(name, "flock"))
        K.flock_local = !strcmp(value, "local");
    if (!strcmp(name, "append"))
        K.append_atomic = !strcmp(value, "atomic");
    if (!strcmp(name, "statfs"))
        K.statfs_zero = !strcmp(value, "zero");
}
static void knobs(void) {
    static struct timespec seen;
    struct stat st;
    char line[256];
    if (stat(knobfile, &st) || (st.st_mtim.tv_sec == seen.tv_sec && st.st_mtim.tv_nsec == seen.tv_nsec))
        return;
    seen = st.st_mtim;
    memset(&K, 0, sizeof K);
    K.acregmin = 3;
    K.acregmax = 60;
    K.acdirmin = 30;
    K.acdirmax = 60;
    K.opendir_cto = 1;
    K.dtype = 1;
    K.uid = -1;
    K.fail_at = 1;
    FILE *f = fopen(knobfile, "r");
    if (!f)
        return;
    while (fgets(line, sizeof line, f)) {
        char *value = strchr(line, '=');
        if (!value)
            continue;
        *value++ = 0;
        value[strcspn(value, "\n")] = 0;
        knob(line, value);
    }
    fclose(f);
    n_link = n_mkdir = n_rename = n_unlink = n_fail = n_told = 0;
}
static int matches(const char *name) {
    return !K.match[0] || (name && !fnmatch(K.match, name, 0));
}
/* what was done to a request stands in the log, so that a test knows that something was */
static void say(const char *what, const char *name) {
    fprintf(stderr, "disturbed: %s %s\n", what, name ? name : "");
}
/* whether to tell a request that was done as one that was not */
static int again(const char *op, int each, int *count, const char *name) {
    if (each <= 0 || !matches(name) || ++*count % each || (K.times && ++n_told > K.times))
        return 0;
    say(op, name);
    return 1;
}
/* the errno with which a request is to fail, or 0 */
static int failing(const char *op, const char *name) {
    if (!K.fail_errno || strcmp(op, K.fail_op) || !matches(name))
        return 0;
    n_fail++;
    if (n_fail < K.fail_at || n_fail >= K.fail_at + (K.times ? K.times : 1))
        return 0;
    say(op, name);
    return K.fail_errno;
}
static struct ino *I(fuse_ino_t n) {
    return n == FUSE_ROOT_ID ? root : (struct ino *)(uintptr_t)n;
}
static fuse_ino_t N(struct ino *i) {
    return i == root ? FUSE_ROOT_ID : (fuse_ino_t)(uintptr_t)i;
}
static void path_of(struct ino *i, char *p) {
    sprintf(p, "/proc/self/fd/%d", i->fd);
}

static off_t dirty_end(struct ino *i) {
    off_t e = 0;
    for (struct buf *b = i->dirty; b; b = b->next)
        if (b->off + (off_t)b->len > e)
            e = b->off + b->len;
    return e;
}

/* a GETATTR: 0, or ESTALE */
static int refresh(struct ino *i) {
    struct stat st;
    if (fstatat(i->fd, "", &st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW))
        return errno;
    st.st_mtim.tv_sec += K.skew;
    st.st_ctim.tv_sec += K.skew;
    st.st_atim.tv_sec += K.skew;
    if (K.gran)
        st.st_mtim.tv_nsec = st.st_ctim.tv_nsec = st.st_atim.tv_nsec = 0;
    if (K.uid >= 0)
        st.st_uid = K.uid;
    int dir = S_ISDIR(st.st_mode);
    int same = i->at && i->st.st_mtim.tv_sec == st.st_mtim.tv_sec &&
               i->st.st_mtim.tv_nsec == st.st_mtim.tv_nsec && i->st.st_size == st.st_size &&
               i->st.st_ctim.tv_sec == st.st_ctim.tv_sec && i->st.st_ctim.tv_nsec == st.st_ctim.tv_nsec;
    double lo = dir ? K.acdirmin : K.acregmin, hi = dir ? K.acdirmax : K.acregmax;
    if (!same) {
        i->ver++;
        i->timeo = lo;
    } else {
        i->timeo = i->timeo < lo ? lo : i->timeo * 2;
        if (i->timeo > hi)
            i->timeo = hi;
    }
    i->st = st;
    i->at = now();
    off_t e = dirty_end(i);
    if (e > i->st.st_size)
        i->st.st_size = e;
    if (st.st_nlink == 0) {
        i->dead = 1;
        return ESTALE;
    }
    return 0;
}
static int valid(struct ino *i) {
    if (i->at && now() - i->at < i->timeo)
        return 0;
    return refresh(i);
}

static int get(int fd, struct ino **out) /* takes the O_PATH descriptor */
{
    struct stat st;
    if (fstatat(fd, "", &st, AT_EMPTY_PATH)) {
        int e = errno;
        close(fd);
        return e;
    }
    unsigned h = (st.st_ino * 31 + st.st_dev) & 65535;
    for (struct ino *i = table[h]; i; i = i->next)
        if (i->ino == st.st_ino && i->dev == st.st_dev) {
            close(fd);
            *out = i;
            return 0;
        }
    struct ino *i = calloc(1, sizeof *i);
    i->fd = fd;
    i->dev = st.st_dev;
    i->ino = st.st_ino;
    i->wfd = -1;
    i->next = table[h];
    table[h] = i;
    *out = i;
    return 0;
}
static struct dent *dent(struct ino *p, const char *name, int make) {
    for (struct dent *d = p->dents; d; d = d->next)
        if (!strcmp(d->name, name))
            return d;
    if (!make)
        return NULL;
    struct dent *d = calloc(1, sizeof *d);
    d->name = strdup(name);
    d->next = p->dents;
    p->dents = d;
    d->ver = -1;
    return d;
}
static void drop(struct ino *p, const char *name) {
    struct dent *d = dent(p, name, 0);
    if (d)
        d->ver = -1;
}

/* a LOOKUP on the server; *out NULL: it is not there */
static int lookup_server(struct ino *p, const char *name, struct ino **out) {
    ms(K.op_ms);
    *out = NULL;
    int fd = openat(p->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    if (fd < 0 && errno != ENOENT)
        return errno;
    if (fd < 0 && (fstatat(p->fd, "", &st, AT_EMPTY_PATH) || st.st_nlink == 0)) {
        p->dead = 1;
        return ESTALE;
    }
    if (fd >= 0) {
        int e = get(fd, out);
        if (e)
            return e;
        e = refresh(*out);
        if (e)
            *out = NULL;
    }
    if (!p->at)
        refresh(p);
    struct dent *d = dent(p, name, 1);
    d->to = *out;
    d->ver = p->ver;
    if (*out)
        (*out)->called = d->name;
    return 0;
}
static int lookup(struct ino *p, const char *name, struct ino **out) {
    int e = valid(p);
    if (e)
        return e;
    struct dent *d = dent(p, name, 0);
    if (d && d->ver == p->ver && (d->to ? !d->to->dead : !K.noneg)) {
        *out = d->to;
        return 0;
    }
    return lookup_server(p, name, out);
}
static int fill(struct ino *i, struct fuse_entry_param *e) {
    int err = valid(i);
    if (err)
        return err;
    memset(e, 0, sizeof *e);
    e->ino = N(i);
    e->attr = i->st;
    return 0;
}
static void changed(struct ino *p) {
    refresh(p);
    p->ver++;
} /* post-op attributes of an own change */

static void op_lookup(fuse_req_t r, fuse_ino_t pn, const char *name) {
    pthread_mutex_lock(&L);
    knobs();
    struct ino *i;
    struct fuse_entry_param e;
    int err = failing("lookup", name);
    if (!err)
        err = lookup(I(pn), name, &i);
    if (!err && !i)
        err = ENOENT;
    if (!err)
        err = fill(i, &e);
    pthread_mutex_unlock(&L);
    if (err)
        fuse_reply_err(r, err);
    else
        fuse_reply_entry(r, &e);
}
static void op_getattr(fuse_req_t r, fuse_ino_t n, struct fuse_file_info *fi) {
    pthread_mutex_lock(&L);
    knobs();
    struct ino *i = I(n);
    struct stat st;
    int err = failing("getattr", i->called);
    if (!err)
        err = valid(i);
    if (err == ESTALE && i->sname)
        err = 0;
    st = i->st;
    pthread_mutex_unlock(&L);
    if (err)
        fuse_reply_err(r, err);
    else
        fuse_reply_attr(r, &st, 0);
}
static int flush_dirty(struct ino *i) {
    int err = 0;
    struct buf *b = i->dirty, *rev = NULL, *n;
    if (!b)
        return 0;
    struct stat st;
    if (!fstatat(i->fd, "", &st, AT_EMPTY_PATH) && st.st_nlink == 0)
        err = ESTALE;
    for (; b; b = n) {
        n = b->next;
        b->next = rev;
        rev = b;
    }
    for (b = rev; b; b = n) {
        n = b->next;
        if (!err && pwrite(i->wfd, b->data, b->len, b->off) != (ssize_t)b->len)
            err = errno ? errno : EIO;
        free(b->data);
        free(b);
    }
    i->dirty = NULL;
    refresh(i);
    return err;
}
static void op_setattr(fuse_req_t r, fuse_ino_t n, struct stat *a, int to, struct fuse_file_info *fi) {
    char p[64];
    int err = 0;
    struct stat st;
    struct ino *i;
    pthread_mutex_lock(&L);
    knobs();
    i = I(n);
    path_of(i, p);
    flush_dirty(i);
    err = failing("setattr", i->called);
    if (!err && !fstatat(i->fd, "", &st, AT_EMPTY_PATH) && st.st_nlink == 0) {
        err = ESTALE;
        i->dead = 1;
    }
    if (!err && to & FUSE_SET_ATTR_MODE && chmod(p, a->st_mode))
        err = errno;
    if (!err && to & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID) &&
        chown(p, to & FUSE_SET_ATTR_UID ? a->st_uid : (uid_t)-1,
              to & FUSE_SET_ATTR_GID ? a->st_gid : (gid_t)-1))
        err = errno;
    if (!err && to & FUSE_SET_ATTR_SIZE && truncate(p, a->st_size))
        err = errno;
    if (!err && to & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME)) {
        struct timespec t[2] = {{0, UTIME_OMIT}, {0, UTIME_OMIT}};
        if (to & FUSE_SET_ATTR_ATIME_NOW)
            t[0].tv_nsec = UTIME_NOW;
        else if (to & FUSE_SET_ATTR_ATIME) {
            t[0] = a->st_atim;
            t[0].tv_sec -= K.skew;
        }
        if (to & FUSE_SET_ATTR_MTIME_NOW)
            t[1].tv_nsec = UTIME_NOW;
        else if (to & FUSE_SET_ATTR_MTIME) {
            t[1] = a->st_mtim;
            t[1].tv_sec -= K.skew;
        }
        if (utimensat(AT_FDCWD, p, t, 0))
            err = errno;
    }
    if (!err)
        err = refresh(i);
    st = i->st;
    pthread_mutex_unlock(&L);
    if (err)
        fuse_reply_err(r, err);
    else
        fuse_reply_attr(r, &st, 0);
}
static void op_readlink(fuse_req_t r, fuse_ino_t n) {
    char b[4097];
    ssize_t k = readlinkat(I(n)->fd, "", b, 4096);
    if (k < 0)
        fuse_reply_err(r, errno);
    else {
        b[k] = 0;
        fuse_reply_readlink(r, b);
    }
}
/* after something was made under this name */
static void reply_made(fuse_req_t r, struct ino *p, const char *name, int err, int told) {
    struct fuse_entry_param e;
    struct ino *i = NULL;
    if (!err) {
        changed(p);
        err = lookup_server(p, name, &i);
        if (!err && !i)
            err = ENOENT;
        if (!err)
            err = fill(i, &e);
    } else {
        drop(p, name);
        refresh(p);
    } /* wcc data come with failures too */
    if (!err && told) {
        drop(p, name);
        err = told;
    }
    pthread_mutex_unlock(&L);
    if (err)
        fuse_reply_err(r, err);
    else
        fuse_reply_entry(r, &e);
}
static int as_caller(fuse_req_t r, struct ino *p, const char *name) {
    const struct fuse_ctx *c = fuse_req_ctx(r);
    return fchownat(p->fd, name, c->uid, c->gid, AT_SYMLINK_NOFOLLOW);
}
static void op_mkdir(fuse_req_t r, fuse_ino_t pn, const char *name, mode_t mode) {
    pthread_mutex_lock(&L);
    knobs();
    ms(K.op_ms);
    struct ino *p = I(pn);
    int err = failing("mkdir", name);
    if (!err && mkdirat(p->fd, name, mode))
        err = errno;
    if (err == ENOENT)
        err = ESTALE;
    if (!err)
        as_caller(r, p, name);
    reply_made(r, p, name, err, !err && again("mkdir", K.mkdir_retrans, &n_mkdir, name) ? EEXIST : 0);
}
static void op_symlink(fuse_req_t r, const char *to, fuse_ino_t pn, const char *name) {
    pthread_mutex_lock(&L);
    knobs();
    ms(K.op_ms);
    struct ino *p = I(pn);
    int err = failing("symlink", name);
    if (!err && symlinkat(to, p->fd, name))
        err = errno;
    if (!err)
        as_caller(r, p, name);
    reply_made(r, p, name, err, 0);
}
static void op_link(fuse_req_t r, fuse_ino_t n, fuse_ino_t pn, const char *name) {
    char from[64];
    pthread_mutex_lock(&L);
    knobs();
    ms(K.op_ms);
    struct ino *i = I(n), *p = I(pn);
    path_of(i, from);
    flush_dirty(i);
    int err = K.link_errno ? K.link_errno : failing("link", name);
    if (!err && linkat(AT_FDCWD, from, p->fd, name, AT_SYMLINK_FOLLOW))
        err = errno;
    if (i->at)
        refresh(i);
    reply_made(r, p, name, err, !err && again("link", K.link_retrans, &n_link, name) ? EEXIST : 0);
}
/* an open file of this node that would be removed: keep it as .nfsXXXX */
static int silly(struct ino *p, const char *name) {
    int fd = openat(p->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct ino *i;
    if (fd < 0 || get(fd, &i) || i->opens == 0 || !S_ISREG(i->st.st_mode) || i->sname)
        return 0;
    char s[64];
    snprintf(s, sizeof s, ".nfs%08lx%08lx", (unsigned long)i->ino, ++sillies);
    if (renameat(p->fd, name, p->fd, s))
        return 0;
    i->sdir = p;
    i->sname = strdup(s);
    drop(p, name);
    return 1;
}
static void op_unlink(fuse_req_t r, fuse_ino_t pn, const char *name) {
    pthread_mutex_lock(&L);
    knobs();
    ms(K.op_ms);
    struct ino *p = I(pn);
    int err = failing("unlink", name), fd = openat(p->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct ino *i = NULL;
    if (fd >= 0)
        get(fd, &i);
    if (!err && !silly(p, name) && unlinkat(p->fd, name, 0))
        err = errno;
    drop(p, name);
    if (!err)
        changed(p);
    if (i)
        i->at = 0;
    if (!err && again("unlink", K.unlink_retrans, &n_unlink, name))
        err = ENOENT;
    pthread_mutex_unlock(&L);
    fuse_reply_err(r, err);
}
static void op_rmdir(fuse_req_t r, fuse_ino_t pn, const char *name) {
    pthread_mutex_lock(&L);
    knobs();
    int w = K.rmdir_ms;
    pthread_mutex_unlock(&L);
    ms(w);
    pthread_mutex_lock(&L);
    ms(K.op_ms);
    struct ino *p = I(pn);
    int err = failing("rmdir", name);
    if (!err && unlinkat(p->fd, name, AT_REMOVEDIR))
        err = errno;
    if (!err) {
        drop(p, name);
        changed(p);
    }
    pthread_mutex_unlock(&L);
    fuse_reply_err(r, err);
}
static void op_rename(fuse_req_t r, fuse_ino_t pn, const char *a, fuse_ino_t qn, const char *b,
                      unsigned flags) {
    pthread_mutex_lock(&L);
    knobs();
    ms(K.op_ms);
    struct ino *p = I(pn), *q = I(qn);
    int err = flags ? EINVAL : failing("rename", b);
    if (!err) {
        silly(q, b);
        if (renameat(p->fd, a, q->fd, b))
            err = errno;
    }
    drop(p, a);
    drop(q, b);
    if (!err) {
        changed(p);
        if (q != p)
            changed(q);
    } else {
        struct stat st;
        if (err == ENOENT && !fstatat(p->fd, "", &st, AT_EMPTY_PATH) && st.st_nlink == 0) {
            err = ESTALE;
            p->dead = 1;
        }
    }
    if (!err && again("rename", K.rename_retrans, &n_rename, b))
        err = ENOENT;
    pthread_mutex_unlock(&L);
    fuse_reply_err(r, err);
}
static int opened(struct ino *i, int flags, struct fuse_file_info *fi) {
    char p[64];
    path_of(i, p);
    int acc = flags & O_ACCMODE;
    if (acc == O_WRONLY)
        acc = O_RDWR;
    int fl = acc | (flags & O_TRUNC) | (K.append_atomic ? flags & O_APPEND : 0);
    int fd = open(p, fl | O_CLOEXEC);
    if (fd < 0 && acc == O_RDWR && (flags & O_ACCMODE) == O_WRONLY)
        fd = open(p, (fl & ~O_ACCMODE) | O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    struct file *f = calloc(1, sizeof *f);
    f->i = i;
    f->fd = fd;
    fi->fh = (uintptr_t)f;
    i->opens++;
    if (acc == O_RDWR && i->wfd < 0)
        i->wfd = open(p, O_RDWR | O_CLOEXEC);
    fi->keep_cache = 0;
    return 0;
}
static void op_create(fuse_req_t r, fuse_ino_t pn, const char *name, mode_t mode, struct fuse_file_info *fi) {
    pthread_mutex_lock(&L);
    knobs();
    ms(K.op_ms);
    struct ino *p = I(pn), *i = NULL;
    struct fuse_entry_param e;
    int err = failing("create", name), fd = -1;
    if (!err)
        fd = openat(p->fd, name, O_WRONLY | O_CREAT | O_CLOEXEC | (fi->flags & (O_EXCL | O_NOFOLLOW)), mode);
    if (err) {
        /* not done */
    } else if (fd < 0) {
        err = errno;
        struct stat st;
        if (err == ENOENT && !fstatat(p->fd, "", &st, AT_EMPTY_PATH) && st.st_nlink == 0) {
            err = ESTALE;
            p->dead = 1;
        }
    } else {
        close(fd);
        as_caller(r, p, name);
        changed(p);
        err = lookup_server(p, name, &i);
        if (!err && !i)
            err = ENOENT;
    }
    if (err)
        drop(p, name);
    if (!err)
        err = opened(i, fi->flags & ~(O_CREAT | O_EXCL), fi);
    if (!err)
        err = fill(i, &e);
    pthread_mutex_unlock(&L);
    if (err)
        fuse_reply_err(r, err);
    else
        fuse_reply_create(r, &e, fi);
}
static void op_open(fuse_req_t r, fuse_ino_t n, struct fuse_file_info *fi) {
    pthread_mutex_lock(&L);
    knobs();
    ms(K.op_ms);
    struct ino *i = I(n);
    int err = failing("open", i->called);
    if (!err)
        err = refresh(i); /* close-to-open */
    if (!err)
        err = opened(i, fi->flags, fi);
    if (!err && fi->flags & O_TRUNC)
        refresh(i);
    pthread_mutex_unlock(&L);
    if (err)
        fuse_reply_err(r, err);
    else
        fuse_reply_open(r, fi);
}
static int stale(struct ino *i) {
    struct stat st;
    return !i->sname && !fstatat(i->fd, "", &st, AT_EMPTY_PATH) && st.st_nlink == 0;
}
static void op_read(fuse_req_t r, fuse_ino_t n, size_t size, off_t off, struct fuse_file_info *fi) {
    struct file *f = (void *)(uintptr_t)fi->fh;
    char *b = malloc(size);
    ssize_t k;
    int err = 0;
    pthread_mutex_lock(&L);
    knobs();
    err = failing("read", f->i->called);
    if (f->i->dirty)
        flush_dirty(f->i);
    if (!err && stale(f->i))
        err = ESTALE;
    off_t end = f->i->st.st_size; /* what the client takes for the end */
    pthread_mutex_unlock(&L);
    if (off + (off_t)size > end)
        size = off < end ? end - off : 0;
    k = err ? -1 : pread(f->fd, b, size, off);
    if (err)
        fuse_reply_err(r, err);
    else if (k < 0)
        fuse_reply_err(r, errno);
    else
        fuse_reply_buf(r, b, k);
    free(b);
}
static void op_write(fuse_req_t r, fuse_ino_t n, const char *b, size_t size, off_t off,
                     struct fuse_file_info *fi) {
    struct file *f = (void *)(uintptr_t)fi->fh;
    struct ino *i = f->i;
    int err = 0;
    ssize_t k = size;
    pthread_mutex_lock(&L);
    knobs();
    err = failing("write", i->called);
    if (!err && K.delay && i->wfd >= 0) {
        struct buf *d = calloc(1, sizeof *d);
        d->off = off;
        d->len = size;
        d->data = malloc(size);
        memcpy(d->data, b, size);
        d->next = i->dirty;
        if (!i->dirty)
            i->dirty_at = now();
        i->dirty = d;
        if (off + (off_t)size > i->st.st_size)
            i->st.st_size = off + size;
    } else if (!err) {
        if (stale(i))
            err = ESTALE;
        else {
            k = pwrite(f->fd, b, size, off);
            if (k < 0)
                err = errno;
            refresh(i);
        }
    }
    pthread_mutex_unlock(&L);
    if (err)
        fuse_reply_err(r, err);
    else
        fuse_reply_write(r, k);
}
static void op_flush(fuse_req_t r, fuse_ino_t n, struct fuse_file_info *fi) {
    struct file *f = (void *)(uintptr_t)fi->fh;
    pthread_mutex_lock(&L);
    knobs();
    int err = flush_dirty(f->i), told = failing("flush", f->i->called);
    if (!err)
        err = told;
    pthread_mutex_unlock(&L);
    fuse_reply_err(r, err);
}
static void op_fsync(fuse_req_t r, fuse_ino_t n, int data, struct fuse_file_info *fi) {
    struct file *f = (void *)(uintptr_t)fi->fh;
    pthread_mutex_lock(&L);
    knobs();
    int err = flush_dirty(f->i), w = K.fsync_ms, told = failing("fsync", f->i->called);
    if (!err)
        err = told;
    if (!err && stale(f->i))
        err = ESTALE;
    pthread_mutex_unlock(&L);
    ms(w);
    fuse_reply_err(r, err);
}
static void op_fsyncdir(fuse_req_t r, fuse_ino_t n, int data, struct fuse_file_info *fi) {
    pthread_mutex_lock(&L);
    knobs();
    int w = K.fsync_ms, err = failing("fsyncdir", I(n)->called);
    pthread_mutex_unlock(&L);
    ms(w);
    fuse_reply_err(r, err);
}
static void op_release(fuse_req_t r, fuse_ino_t n, struct fuse_file_info *fi) {
    struct file *f = (void *)(uintptr_t)fi->fh;
    struct ino *i = f->i;
    pthread_mutex_lock(&L);
    flush_dirty(i);
    close(f->fd);
    free(f);
    if (--i->opens == 0) {
        if (i->wfd >= 0) {
            close(i->wfd);
            i->wfd = -1;
        }
        if (i->sname) {
            unlinkat(i->sdir->fd, i->sname, 0);
            changed(i->sdir);
            i->sname = NULL;
            i->dead = 1;
        }
    }
    pthread_mutex_unlock(&L);
    fuse_reply_err(r, 0);
}
static void op_opendir(fuse_req_t r, fuse_ino_t n, struct fuse_file_info *fi) {
    pthread_mutex_lock(&L);
    knobs();
    ms(K.op_ms);
    struct ino *d = I(n);
    int err = failing("opendir", d->called);
    if (!err)
        err = K.opendir_cto ? refresh(d) : valid(d);
    if (!err && !(d->listed && d->listver == d->ver)) {
        for (struct name *x = d->list, *y; x; x = y) {
            y = x->next;
            free(x->s);
            free(x);
        }
        d->list = NULL;
        int fd = openat(d->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *s = fd < 0 ? NULL : fdopendir(fd);
        if (!s)
            err = errno;
        else {
            struct dirent *e;
            struct name **end = &d->list;
            while ((e = readdir(s))) {
                struct name *x = calloc(1, sizeof *x);
                x->s = strdup(e->d_name);
                x->ino = e->d_ino;
                x->type = e->d_type;
                *end = x;
                end = &x->next;
            }
            closedir(s);
            d->listed = 1;
            d->listver = d->ver;
        }
    }
    struct name *copy = NULL, **end = &copy;
    for (struct name *x = err ? NULL : d->list; x; x = x->next) {
        struct name *y = calloc(1, sizeof *y);
        *y = *x;
        y->s = strdup(x->s);
        y->next = NULL;
        *end = y;
        end = &y->next;
    }
    pthread_mutex_unlock(&L);
    fi->fh = (uintptr_t)copy;
    if (err)
        fuse_reply_err(r, err);
    else
        fuse_reply_open(r, fi);
}
static void op_readdir(fuse_req_t r, fuse_ino_t n, size_t size, off_t off, struct fuse_file_info *fi) {
    char *b = malloc(size);
    size_t used = 0;
    off_t at = 0;
    for (struct name *x = (void *)(uintptr_t)fi->fh; x; x = x->next) {
        if (at++ < off)
            continue;
        struct stat st = {.st_ino = x->ino, .st_mode = K.dtype ? (mode_t)x->type << 12 : 0};
        size_t k = fuse_add_direntry(r, b + used, size - used, x->s, &st, at);
        if (k > size - used)
            break;
        used += k;
    }
    fuse_reply_buf(r, b, used);
    free(b);
}
static void op_releasedir(fuse_req_t r, fuse_ino_t n, struct fuse_file_info *fi) {
    for (struct name *x = (void *)(uintptr_t)fi->fh, *y; x; x = y) {
        y = x->next;
        free(x->s);
        free(x);
    }
    fuse_reply_err(r, 0);
}
static void op_statfs(fuse_req_t r, fuse_ino_t n) {
    struct statvfs v;
    memset(&v, 0, sizeof v);
    if (!K.statfs_zero && fstatvfs(root->fd, &v))
        fuse_reply_err(r, errno);
    else
        fuse_reply_statfs(r, &v);
}
static void op_flock(fuse_req_t r, fuse_ino_t n, struct fuse_file_info *fi, int op) {
    struct file *f = (void *)(uintptr_t)fi->fh;
    if (K.flock_errno) {
        fuse_reply_err(r, K.flock_errno);
        return;
    }
    if (op & LOCK_NB || op & LOCK_UN) {
        fuse_reply_err(r, flock(f->fd, op) ? errno : 0);
        return;
    }
    while (flock(f->fd, op | LOCK_NB)) {
        if (errno != EWOULDBLOCK || fuse_req_interrupted(r)) {
            fuse_reply_err(r, fuse_req_interrupted(r) ? EINTR : errno);
            return;
        }
        usleep(20000);
    }
    fuse_reply_err(r, 0);
}
static void op_getlk(fuse_req_t r, fuse_ino_t n, struct fuse_file_info *fi, struct flock *l) {
    if (K.plock_errno)
        fuse_reply_err(r, K.plock_errno);
    else {
        l->l_type = F_UNLCK;
        fuse_reply_lock(r, l);
    }
}
static void op_setlk(fuse_req_t r, fuse_ino_t n, struct fuse_file_info *fi, struct flock *l, int sleep) {
    fuse_reply_err(r, K.plock_errno); /* local only */
}
static void op_access(fuse_req_t r, fuse_ino_t n, int mask) {
    fuse_reply_err(r, 0);
}
static void op_init(void *u, struct fuse_conn_info *c) {
    c->want &= ~(FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_WRITEBACK_CACHE |
                 FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_CACHE_SYMLINKS);
    c->want &= ~FUSE_CAP_AUTO_INVAL_DATA;
    c->want |= FUSE_CAP_POSIX_LOCKS;
    if (!K.flock_local)
        c->want |= FUSE_CAP_FLOCK_LOCKS;
    c->time_gran = 1;
}
static void *flusher(void *u) {
    for (;;) {
        sleep(1);
        pthread_mutex_lock(&L);
        for (int h = 0; h < 65536; h++)
            for (struct ino *i = table[h]; i; i = i->next)
                if (i->dirty && now() - i->dirty_at > 30)
                    flush_dirty(i);
        pthread_mutex_unlock(&L);
    }
    return NULL;
}
int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "nfsish BACKING MOUNTPOINT KNOBS [fuse options]\n");
        return 2;
    }
    struct rlimit m = {1 << 19, 1 << 19};
    setrlimit(RLIMIT_NOFILE, &m);
    umask(0);
    knobfile = argv[3];
    knobs();
    int fd = open(argv[1], O_PATH | O_DIRECTORY);
    if (fd < 0 || get(fd, &root)) {
        perror(argv[1]);
        return 1;
    }
    refresh(root);
    char *mnt = argv[2];
    argv[3] = argv[0];
    struct fuse_args a = FUSE_ARGS_INIT(argc - 3, argv + 3);
    static struct fuse_lowlevel_ops o = {.init = op_init,
                                         .lookup = op_lookup,
                                         .getattr = op_getattr,
                                         .setattr = op_setattr,
                                         .readlink = op_readlink,
                                         .mkdir = op_mkdir,
                                         .symlink = op_symlink,
                                         .link = op_link,
                                         .unlink = op_unlink,
                                         .rmdir = op_rmdir,
                                         .rename = op_rename,
                                         .create = op_create,
                                         .open = op_open,
                                         .read = op_read,
                                         .write = op_write,
                                         .flush = op_flush,
                                         .fsync = op_fsync,
                                         .fsyncdir = op_fsyncdir,
                                         .release = op_release,
                                         .opendir = op_opendir,
                                         .readdir = op_readdir,
                                         .releasedir = op_releasedir,
                                         .statfs = op_statfs,
                                         .flock = op_flock,
                                         .getlk = op_getlk,
                                         .setlk = op_setlk,
                                         .access = op_access};
    if (K.flock_local)
        o.flock = NULL;
    struct fuse_session *s = fuse_session_new(&a, &o, sizeof o, NULL);
    if (!s || fuse_session_mount(s, mnt))
        return 1;
    pthread_t t;
    pthread_create(&t, NULL, flusher, NULL);
    struct fuse_loop_config c = {.clone_fd = 0, .max_idle_threads = 10};
    int rc = fuse_session_loop_mt(s, &c);
    fuse_session_unmount(s);
    return rc;
}
