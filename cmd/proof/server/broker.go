package server

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Kinds of brokers.
const (
	Embedded = "embedded"
	Kafka    = "kafka"
	RabbitMQ = "rabbitmq"
)

// Broker is a private Kafka or RabbitMQ, run by the repository's scripts. One of kind
// Embedded has no process.
type Broker struct {
	Kind string

	// port is what a proxy forwards to; direct is the port for everybody else.
	port, direct int
	dir, script  string
}

// StartBroker starts an empty broker with its data and logs in dir.
func StartBroker(ctx context.Context, kind, dir string) (*Broker, error) {
	return StartBrokerBehind(ctx, kind, dir, 0)
}

// StartBrokerBehind is StartBroker for a broker whose clients connect through a proxy on a
// local port. Kafka tells clients to do so, except those that come by Address.
func StartBrokerBehind(ctx context.Context, kind, dir string, proxy int) (*Broker, error) {
	if kind != Embedded && kind != Kafka && kind != RabbitMQ {
		return nil, fmt.Errorf("broker %q, expected embedded, kafka or rabbitmq", kind)
	}

	root, err := Root()
	if err != nil {
		return nil, err
	}

	port, err := FreePort()
	if err != nil {
		return nil, err
	}

	b := &Broker{Kind: kind, port: port, direct: port, dir: filepath.Join(dir, kind), script: filepath.Join(root, "scripts", kind+".sh")}

	if kind == Kafka && proxy > 0 {
		if err := b.advertise(proxy); err != nil {
			return nil, err
		}
	}

	return b, b.Start(ctx)
}

// advertise adds a listener for clients that do not use the proxy.
func (b *Broker) advertise(proxy int) (err error) {
	if b.direct, err = FreePort(); err != nil {
		return err
	}

	settings := fmt.Sprintf(`listeners=PLAINTEXT://%[1]s,DIRECT://%[2]s,CONTROLLER://%[3]s
advertised.listeners=PLAINTEXT://%[4]s,DIRECT://%[2]s
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,DIRECT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=DIRECT
`, Loopback(b.port), Loopback(b.direct), Loopback(b.port+1), Loopback(proxy))

	if err := os.MkdirAll(b.dir, 0o750); err != nil {
		return err
	}

	return os.WriteFile(filepath.Join(b.dir, "extra.properties"), []byte(settings), 0o600)
}

// Address returns host:port of Kafka or the URL of RabbitMQ.
func (b *Broker) Address() string { return b.AddressAt(Loopback(b.direct)) }

// Upstream is the address to which a proxy forwards.
func (b *Broker) Upstream() string { return Loopback(b.port) }

// AddressAt is Address for clients that reach the broker through another host and port.
func (b *Broker) AddressAt(hostport string) string {
	if b.Kind == RabbitMQ {
		return "amqp://guest:guest@" + hostport + "/"
	}

	return hostport
}

// Start starts the broker again after Stop or Kill, with its data.
func (b *Broker) Start(ctx context.Context) error { return b.do(ctx, "start") }

// Stop ends the broker in order.
func (b *Broker) Stop(ctx context.Context) error { return b.do(ctx, "stop") }

// Kill ends the broker with SIGKILL.
func (b *Broker) Kill(ctx context.Context) error { return b.do(ctx, "kill") }

// Freeze stops the broker's processes without ending them, until Thaw.
func (b *Broker) Freeze(ctx context.Context) error { return b.do(ctx, "freeze") }

// Thaw continues what Freeze stopped.
func (b *Broker) Thaw(ctx context.Context) error { return b.do(ctx, "thaw") }

// Control runs rabbitmqctl with args and returns its output.
func (b *Broker) Control(ctx context.Context, args ...string) ([]byte, error) {
	return b.run(ctx, "ctl", args...)
}

func (b *Broker) do(ctx context.Context, action string) error {
	if b.Kind == Embedded {
		return nil
	}

	_, err := b.run(ctx, action)

	return err
}

func (b *Broker) run(ctx context.Context, action string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()

	cmd := exec.CommandContext(ctx, b.script, append([]string{action, b.dir, strconv.Itoa(b.port)}, args...)...)
	cmd.Env = append(os.Environ(), "KAFKA_HEAP=256m") // several run at once
	cmd.WaitDelay = patience                          // a server that it started keeps no output open, but may be slow

	// Output goes to a file, because the server inherits it and outlives the script.
	out, err := os.CreateTemp("", "millrace-proof-script-*")
	if err != nil {
		return nil, err
	}

	defer func() { _ = os.Remove(out.Name()) }()
	defer func() { _ = out.Close() }()

	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()

	text, readErr := os.ReadFile(out.Name())
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", filepath.Base(b.script), strings.Join(append([]string{action}, args...), " "), err, text)
	}

	return text, readErr
}
