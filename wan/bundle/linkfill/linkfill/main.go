// Command linkfill runs one end of package linkfill: "linkfill -serve ADDRESS"
// or "linkfill ADDRESS", which prints its result as JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/drover-vm/drover"
	"github.com/drover-vm/drover/wan/bundle/linkfill"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "linkfill:", err)
		os.Exit(1)
	}
}

func run() error {
	var o linkfill.Options
	serve := flag.Bool("serve", false, "receive at the address")
	flag.IntVar(&o.Conns, "conns", 0, "connections")
	flag.StringVar(&o.Congestion, "congestion", "", "TCP's control")
	flag.IntVar(&o.NotSentBytes, "notsent", 0, "bytes that the kernel may queue for each connection")
	flag.IntVar(&o.Window, "window", 0, "bytes")
	rate := flag.String("rate", "0", "limit of the sender")
	verbose := flag.Bool("v", false, "log connections")
	warm := flag.Duration("warm", 5*time.Second, "time before the measurement")
	measured := flag.Duration("time", 20*time.Second, "time of the measurement")
	flag.Parse()
	r, err := drover.ParseBitRate(*rate)
	if err != nil {
		return err
	}
	o.Rate = r
	if *verbose {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *serve {
		l, err := net.Listen("tcp", flag.Arg(0))
		if err != nil {
			return err
		}
		return linkfill.Serve(ctx, l, o)
	}
	result, err := linkfill.Fill(ctx, flag.Arg(0), *warm, *measured, o)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}
