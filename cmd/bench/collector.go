package main

import (
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// collector receives traces as an OpenTelemetry collector does, but only counts their
// bytes. The service pays for creating, encoding and sending them; a real collector
// usually processes them on another machine.
type collector struct {
	server   http.Server
	endpoint string
	received atomic.Int64
}

func newCollector() (*collector, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}

	c := &collector{endpoint: "http://" + listener.Addr().String() + "/v1/traces"}
	c.server = http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		c.received.Add(n)
		w.Header().Set("Content-Type", "application/x-protobuf") // an empty response accepts all
	})}

	go func() { _ = c.server.Serve(listener) }()

	return c, nil
}
