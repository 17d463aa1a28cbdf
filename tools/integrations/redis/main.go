// A Redis in memory for Argo CD, on the address of the first argument, until it is told to end.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
)

func main() {
	server := miniredis.NewMiniRedis()
	if err := server.StartAddr(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer server.Close()
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	// Its clock stands still unless it is told: without this nothing in it would ever expire.
	for {
		select {
		case <-ended:
			return
		case <-time.After(time.Second):
			server.FastForward(time.Second)
		}
	}
}
