/* What the guests of `make bench-rootfs` do: one static program, the same for every stack. It prints its wall time in
   nanoseconds and what it did (files, bytes), which must be the same on every stack.

     workload walk DIR                  read every directory below DIR, lstat every entry
     workload readall DIR               read every regular file below DIR, 128 KiB at a time
     workload random LIST COUNT         COUNT reads of 4 KiB at random places of the files that LIST names
     workload small LIST                open, fstat, read and close each file that LIST names
     workload exec COUNT ROOT PROGRAM.. run PROGRAM COUNT times, with ROOT as its root, its output thrown away
     workload write FILE MIB            write FILE 128 KiB at a time, then fsync
     workload create DIR COUNT          make DIR and COUNT files of 4 KiB in it, then sync
     workload fsync FILE COUNT          append 4 KiB to FILE and fsync, COUNT times
     workload unlink DIR COUNT          remove what `create` made, then sync
*/
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char buffer[128 << 10];
static uint64_t files, bytes;

static void fail(const char *what)
{
    fprintf(stderr, "workload: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* Everything of a file; what is read is summed up page by page, so that a stack that serves wrong bytes is found out. */
static uint64_t sum;

static void read_file(int dir, const char *name)
{
    struct stat facts;
    int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &facts))
        fail(name);
    ssize_t len;
    while ((len = read(fd, buffer, sizeof buffer)) > 0) {
        bytes += len;
        for (ssize_t at = 0; at < len; at += 4096)
            sum += (unsigned char)buffer[at] * (uint64_t)(at + 1);
    }
    if (len < 0)
        fail(name);
    files++;
    close(fd);
}

/* Mounts below are left alone: only directories tell truly which file system they are of. */
static void below(int parent, const char *name, dev_t device, int reads)
{
    struct stat facts;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &facts))
        fail(name);
    if (device && facts.st_dev != device) {
        close(fd);
        return;
    }
    DIR *dir = fdopendir(fd);
    struct dirent *entry;
    while ((entry = readdir(dir))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        struct stat of;
        if (fstatat(fd, entry->d_name, &of, AT_SYMLINK_NOFOLLOW))
            fail(entry->d_name);
        if (!reads)
            files++;
        if (S_ISDIR(of.st_mode))
            below(fd, entry->d_name, facts.st_dev, reads);
        else if (reads && S_ISREG(of.st_mode))
            read_file(fd, entry->d_name);
    }
    closedir(dir);
}

static void list(const char *path, void (*each)(const char *))
{
    char line[PATH_MAX];
    FILE *names = fopen(path, "r");
    if (!names)
        fail(path);
    while (fgets(line, sizeof line, names)) {
        line[strcspn(line, "\n")] = 0;
        each(line);
    }
    fclose(names);
}

static void read_named(const char *path) { read_file(AT_FDCWD, path); }

static struct { int fd; off_t pages; } opened[256];
static int count_opened;

static void open_named(const char *path)
{
    struct stat facts;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &facts))
        fail(path);
    if (count_opened < 256) {
        opened[count_opened].fd = fd;
        opened[count_opened++].pages = facts.st_size / 4096;
    }
}

static void random_reads(long count)
{
    uint64_t state = 88172645463325252u; /* xorshift64: the same places on every stack */
    while (count--) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        int file = state % count_opened;
        off_t page = (state >> 20) % opened[file].pages;
        if (pread(opened[file].fd, buffer, 4096, page * 4096) != 4096)
            fail("pread");
        sum += (unsigned char)buffer[0] + 256 * (unsigned char)buffer[4095];
        bytes += 4096;
        files++;
    }
}

static void run(long count, const char *root, char **program)
{
    while (count--) {
        pid_t pid = fork();
        if (pid == 0) {
            int null = open("/dev/null", O_RDWR);
            dup2(null, 0);
            dup2(null, 1);
            if (chroot(root) || chdir("/"))
                fail(root);
            execv(program[0], program);
            fail(program[0]);
        }
        int status;
        if (pid < 0 || waitpid(pid, &status, 0) < 0)
            fail("fork");
        if (status) {
            fprintf(stderr, "workload: %s ended with %x\n", program[0], status);
            exit(1);
        }
        files++;
    }
}

static int create(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0)
        fail(path);
    return fd;
}

static void put(int fd, size_t len)
{
    if (write(fd, buffer, len) != (ssize_t)len)
        fail("write");
    bytes += len;
}

static void write_file(const char *path, long mib)
{
    int fd = create(path);
    for (long piece = 0; piece < mib * 8; piece++)
        put(fd, sizeof buffer);
    if (fsync(fd))
        fail("fsync");
    close(fd);
}

static void create_files(const char *dir, long count)
{
    char path[PATH_MAX];
    if (mkdir(dir, 0755))
        fail(dir);
    while (count--) {
        snprintf(path, sizeof path, "%s/%ld", dir, count);
        int fd = create(path);
        put(fd, 4096);
        close(fd);
        files++;
    }
    sync();
}

static void unlink_files(const char *dir, long count)
{
    char path[PATH_MAX];
    while (count--) {
        snprintf(path, sizeof path, "%s/%ld", dir, count);
        if (unlink(path))
            fail(path);
        files++;
    }
    if (rmdir(dir))
        fail(dir);
    sync();
}

static void sync_often(const char *path, long count)
{
    int fd = create(path);
    while (count--) {
        put(fd, 4096);
        if (fsync(fd))
            fail("fsync");
        files++;
    }
    close(fd);
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    const char *what = argv[1], *on = argv[2];
    long number = argc > 3 ? atol(argv[3]) : 0;
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    if (!strcmp(what, "walk"))
        below(AT_FDCWD, on, 0, 0);
    else if (!strcmp(what, "readall"))
        below(AT_FDCWD, on, 0, 1);
    else if (!strcmp(what, "random"))
        list(on, open_named), random_reads(number);
    else if (!strcmp(what, "small"))
        list(on, read_named);
    else if (!strcmp(what, "exec") && argc > 4)
        run(atol(on), argv[3], argv + 4);
    else if (!strcmp(what, "write"))
        write_file(on, number);
    else if (!strcmp(what, "create"))
        create_files(on, number);
    else if (!strcmp(what, "fsync"))
        sync_often(on, number);
    else if (!strcmp(what, "unlink"))
        unlink_files(on, number);
    else
        return 2;
    clock_gettime(CLOCK_MONOTONIC, &end);
    long long spent = (end.tv_sec - begin.tv_sec) * 1000000000ll + end.tv_nsec - begin.tv_nsec;
    printf("%lld %llu %llu %llu\n", spent, (unsigned long long)files, (unsigned long long)bytes, (unsigned long long)sum);
    return 0;
}
