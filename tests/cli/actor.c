// Does what its arguments say, one after the other:
//   cuda            starts CUDA          alloc:MIB       allocates        free   frees what was allocated last
//   say:TEXT        prints TEXT          lines:N         prints N lines   bar:N  draws a progress bar in N steps
//   wait:MS         waits                ask             asks for a line and repeats it
//   alternate       shows its alternate screen until a key is pressed     size   prints the terminal's size
//   mouse           asks for mouse reports and for marks around what is pasted
//   hide            hides the cursor     left            shows the alternate screen and leaves it so
//   raw             raw mode, prints the next key        save   saves the cursor, prints, restores it
//   crash           ends by SIGSEGV      until:FILE      waits for a file tell:FILE  makes one
//   fault           asks how much memory there is and prints the result
//   fill:B          fills what it has with B, B+1, ...               check:B      looks whether that is there
//   use:FILE        fills it again and again until there is a file, and checks each time
//   -m FILE         is llama.cpp, for whoever looks at the arguments
//   oom  ooms:N     asks for too much    hup             says when it is hung up on
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <termios.h>
#include <unistd.h>

typedef unsigned long long ptr;
static void *lib;
#define F(name, ...) ((int (*)(__VA_ARGS__))dlsym(lib, #name))

static void must(int code, const char *what) {
    if (code) {
        printf("%s: error %d\n", what, code);
        exit(9);
    }
}

static ptr held[1000];
static size_t sizes[1000];
static int n;

static void fill(int byte) {
    for (int k = 0; k < n; k++)
        must(F(cuMemsetD8_v2, ptr, unsigned char, size_t)(held[k], byte + k, sizes[k]), "cuMemsetD8");
    must(F(cuCtxSynchronize, void)(), "cuCtxSynchronize");
}

static void check(int byte) {
    for (int k = 0; k < n; k++) {
        unsigned char *copy = malloc(sizes[k]);
        must(F(cuMemcpyDtoH_v2, void *, ptr, size_t)(copy, held[k], sizes[k]), "cuMemcpyDtoH");
        for (size_t i = 0; i < sizes[k]; i++)
            if (copy[i] != (unsigned char)(byte + k)) {
                printf("byte %zu of allocation %d is %d\n", i, k, copy[i]);
                exit(9);
            }
        free(copy);
    }
}

static void nap(int ms) { usleep(ms * 1000); }

static void hung_up(int s) {
    int fd = open("hung-up", O_CREAT | O_WRONLY, 0600);
    _exit(fd < 0 ? 8 : 7);
}

int main(int argc, char **argv) {
    setvbuf(stdout, 0, _IONBF, 0);
    struct termios before;
    tcgetattr(0, &before);
    for (int i = 1; i < argc; i++) {
        char *word = argv[i], *value = strchr(word, ':');
        if (value) *value++ = 0;
        if (!strcmp(word, "cuda")) {
            void *context;
            lib = dlopen("libcuda.so.1", RTLD_NOW);
            if (!lib) must(-1, "dlopen");
            must(F(cuInit, unsigned)(0), "cuInit");
            must(F(cuDevicePrimaryCtxRetain, void **, int)(&context, 0), "context");
            must(F(cuCtxSetCurrent, void *)(context), "context");
        } else if (!strcmp(word, "-m")) {
            i++;
        } else if (!strcmp(word, "alloc")) {
            sizes[n] = (size_t)atoi(value) << 20;
            must(F(cuMemAlloc_v2, ptr *, size_t)(&held[n], sizes[n]), "cuMemAlloc");
            n++;
        } else if (!strcmp(word, "fill")) {
            fill(atoi(value));
        } else if (!strcmp(word, "check")) {
            check(atoi(value));
        } else if (!strcmp(word, "use")) {
            for (int byte = 0; access(value, F_OK); byte++) {
                fill(byte);
                check(byte);
            }
        } else if (!strcmp(word, "oom")) {
            ptr p;
            if (F(cuMemAlloc_v2, ptr *, size_t)(&p, 1ull << 40) != 2) must(-1, "too much was granted");
        } else if (!strcmp(word, "ooms")) {
            for (int k = 0; k < atoi(value); k++) {
                ptr p;
                if (F(cuMemAlloc_v2, ptr *, size_t)(&p, 1ull << 40) != 2) must(-1, "too much was granted");
            }
        } else if (!strcmp(word, "fault")) {
            // A result that ends the context, as the simulated driver was told to give.
            unsigned long long a, b;
            printf("result %d\n", F(cuMemGetInfo_v2, void *, void *)(&a, &b));
        } else if (!strcmp(word, "free")) {
            must(F(cuMemFree_v2, ptr)(held[--n]), "cuMemFree");
        } else if (!strcmp(word, "say")) {
            puts(value);
        } else if (!strcmp(word, "lines")) {
            for (int k = 1; k <= atoi(value); k++) printf("line %d\n", k);
        } else if (!strcmp(word, "bar")) {
            int steps = atoi(value);
            for (int k = 1; k <= steps; k++) {
                printf("\r\x1b[32m%3d%%\x1b[0m |", 100 * k / steps);
                for (int j = 0; j < 20; j++) putchar(j < 20 * k / steps ? '#' : ' ');
                printf("|");
                nap(20);
            }
        } else if (!strcmp(word, "wait")) {
            nap(atoi(value));
        } else if (!strcmp(word, "ask")) {
            char answer[100];
            printf("> ");
            if (scanf("%99s", answer) != 1) return 3;
            printf("you said %s\n", answer);
        } else if (!strcmp(word, "size")) {
            struct winsize size;
            ioctl(1, TIOCGWINSZ, &size);
            printf("size %dx%d\npixels %dx%d\n", size.ws_row, size.ws_col, size.ws_ypixel, size.ws_xpixel);
        } else if (!strcmp(word, "alternate") || !strcmp(word, "left")) {
            struct winsize size;
            struct termios keys = before;
            printf("\x1b[?1049h\x1b[2J\x1b[H");
            nap(200);
            ioctl(1, TIOCGWINSZ, &size);
            printf("full screen %dx%d\x1b[%d;1Hlast row", size.ws_row, size.ws_col, size.ws_row);
            if (word[0] == 'l') continue;
            keys.c_lflag &= ~(ICANON | ECHO);
            tcsetattr(0, TCSANOW, &keys);
            getchar();
            tcsetattr(0, TCSANOW, &before);
            printf("\x1b[?1049l");
        } else if (!strcmp(word, "mouse")) {
            printf("\x1b[?1000h\x1b[?2004h");
        } else if (!strcmp(word, "hide")) {
            printf("\x1b[?25l\x1b[31m");
        } else if (!strcmp(word, "raw")) {
            struct termios raw = before;
            cfmakeraw(&raw);
            tcsetattr(0, TCSANOW, &raw);
            printf("press\r\n");
            char key = 0;
            read(0, &key, 1);
            tcsetattr(0, TCSANOW, &before);
            printf("key %d\n", key);
        } else if (!strcmp(word, "save")) {
            printf("start \x1b" "7and more");
            nap(1300);
            printf("\x1b" "8END\n");
        } else if (!strcmp(word, "crash")) {
            struct rlimit none = {0, 0};
            setrlimit(RLIMIT_CORE, &none);
            signal(SIGSEGV, SIG_DFL);
            raise(SIGSEGV);
        } else if (!strcmp(word, "until")) {
            while (access(value, F_OK)) nap(10);
        } else if (!strcmp(word, "tell")) {
            close(open(value, O_CREAT | O_WRONLY, 0600));
        } else if (!strcmp(word, "hup")) {
            signal(SIGHUP, hung_up);
        } else if (!strcmp(word, "tty")) {
            char *name = ttyname(0);
            printf("tty %s session %s\n", name ? name : "none", getsid(0) == getsid(getppid()) ? "shared" : "own");
        } else {
            printf("cannot %s\n", word);
            return 9;
        }
    }
}
