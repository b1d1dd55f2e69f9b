/* The smallest useful container: one static program, no file beside it but its entrypoint. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/utsname.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct utsname machine;
    char folder[256];
    const char *who = getenv("WHO");

    if (uname(&machine) != 0 || getcwd(folder, sizeof folder) == NULL) {
        perror("hello");
        return 1;
    }
    printf("Hello, %s! I am process %d of machine \"%s\", on %s %s.\n",
           who ? who : "nobody", (int)getpid(), machine.nodename, machine.sysname, machine.release);
    printf("My folder is %s; I was given %d words:", folder, argc - 1);
    for (int i = 1; i < argc; i++)
        printf(" %s", argv[i]);
    printf("\n");
    return 0;
}
