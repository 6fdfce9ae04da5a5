// Package kafka connects to Kafka. Its publisher and its subscriber have Watermill's
// interfaces, and keep many messages of a partition in hand.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/rcrowley/go-metrics"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
	"github.com/millracehq/millrace/internal/engine/event"
)

// sarama measures each request for each broker and topic, and nobody reads it. This is its
// documented way not to; it must be set before the first client.
func init() { metrics.UseNilMetrics = true } //nolint:gochecknoinits // see above

// Driver is a connection to Kafka.
type Driver struct {
	cfg    Config
	logger *slog.Logger

	mu     sync.Mutex
	client sarama.Client
	pub    message.Publisher

	// dialing ends when the connections should close.
	dialing context.Context //nolint:containedctx // it is a lifetime, not a request
	hangUp  context.CancelFunc

	tokens tokens

	refusedMu sync.Mutex
	refused   map[driver.Topic]refusedTopic
	// unjoined holds the topics whose consumer group cannot be joined.
	unjoined driver.Refusals
}

// New returns a connection that is not yet established.
func New(cfg Config, logger *slog.Logger) *Driver {
	d := &Driver{cfg: cfg, logger: logger}
	d.dialing, d.hangUp = context.WithCancel(context.Background())

	return d
}

// Lanes implements driver.Driver.
func (d *Driver) Lanes() int { return d.cfg.Lanes }

// Run implements driver.Driver. The messages of a run share a batch, and a batch is
// written as a whole.
func (d *Driver) Run() int { return maxRun }

// maxRun is the maximum number of messages with the same key in one publish.
const maxRun = 128

// Publisher implements driver.Driver.
func (d *Driver) Publisher() message.Publisher { return d.pub }

// Connect implements driver.Driver.
func (d *Driver) Connect(_ context.Context, topics []driver.Topic) error {
	d.mu.Lock()
	defer d.mu.Unlock()

	cfg, err := d.settings(d.dialing)
	if err != nil {
		return err
	}

	client, err := d.open(cfg)
	if err != nil {
		return err
	}

	if err := d.prepare(client, topics); err != nil {
		return errors.Join(err, client.Close())
	}

	// Another client, because its requests must not wait for those of Ping.
	forPublisher := *cfg
	forPublisher.Metadata.Retry.Max = 1 // the publisher tries again

	publishing, err := d.open(&forPublisher)
	if err != nil {
		return errors.Join(err, client.Close())
	}

	d.client, d.pub = client, newPublisher(d.dialing, d.cfg, publishing)

	return nil
}

// open returns a client.
func (d *Driver) open(cfg *sarama.Config) (sarama.Client, error) {
	client, err := sarama.NewClient(d.cfg.Brokers, cfg)

	// sarama keeps some answers to a login to itself.
	if errors.Is(err, sarama.ErrOutOfBrokers) && errors.Unwrap(err) == nil {
		err = d.answer(cfg, err)
	}

	if err != nil {
		return nil, d.unreachable(err)
	}

	return client, nil
}

// answer returns why the first broker refuses a connection, or unknown.
func (d *Driver) answer(cfg *sarama.Config, unknown error) error {
	broker := sarama.NewBroker(d.cfg.Brokers[0])
	if err := broker.Open(cfg); err != nil {
		return err
	}

	if _, err := broker.Connected(); err != nil {
		return err
	}

	return errors.Join(unknown, broker.Close())
}

// unreachable returns the error for a failure to connect or to read metadata.
func (d *Driver) unreachable(err error) error {
	refused := refusalOf("", err)

	switch {
	case refused != nil && refused.Scope == driver.Account:
		return refused
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("reaching kafka at %v: %w (a listener also closes connections that lack the encryption or login that it requires: "+
			"see broker.kafka.tls, user and sasl_mechanism)", d.cfg.Brokers, err)
	}

	return fmt.Errorf("reaching kafka at %v: %w", d.cfg.Brokers, err)
}

// group returns the name of a topic's consumer group.
func (d *Driver) group(topic string) string { return d.cfg.Group + "." + topic }

// Ping implements driver.Driver.
func (d *Driver) Ping(context.Context) error {
	d.mu.Lock()
	client := d.client
	d.mu.Unlock()

	if client == nil {
		return errors.New("not connected to kafka")
	}

	if err := client.RefreshMetadata(); err != nil {
		return d.unreachable(err)
	}

	return d.prepareRefused(client)
}

// Close implements driver.Driver. It waits at most closeTimeout for a broker that
// hangs.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()

	defer d.hangUp()
	defer time.AfterFunc(closeTimeout, d.hangUp).Stop()

	if d.pub == nil {
		return nil
	}

	return errors.Join(d.pub.Close(), d.client.Close())
}

// settings returns the settings of producers and consumers, whose connections end with
// ctx. Comments explain deviations from the library's defaults.
func (d *Driver) settings(ctx context.Context) (*sarama.Config, error) {
	cfg := sarama.NewConfig()
	cfg.ClientID = "millrace"
	cfg.Version = sarama.V3_0_0_0

	cfg.Metadata.AllowAutoTopicCreation = false // prepare creates topics, with the configured partitions
	cfg.Metadata.Timeout = 15 * time.Second     // the default is unlimited
	// Detect a dead broker quickly: the relay and the consumers retry.
	cfg.Net.DialTimeout = 5 * time.Second
	cfg.Net.ReadTimeout = 15 * time.Second
	cfg.Net.WriteTimeout = 15 * time.Second
	cfg.Net.Proxy.Enable, cfg.Net.Proxy.Dialer = true, driver.NewDialer(ctx, cfg.Net.DialTimeout)

	cfg.Net.MaxOpenRequests = 1 // requests and their answers are in order

	cfg.Consumer.IsolationLevel = sarama.ReadCommitted // skip what a producer aborts
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest // a new group reads what is already there
	cfg.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategySticky()}
	// A member learns from its next heartbeat that another has joined or left. No
	// partition of the topic makes progress until the last member knows.
	cfg.Consumer.Group.Heartbeat.Interval = 250 * time.Millisecond
	cfg.Consumer.Group.Rebalance.Retry.Backoff = 500 * time.Millisecond
	// A member that gives up its partitions waits for the read that is running.
	cfg.Consumer.MaxWaitTime = 250 * time.Millisecond
	cfg.Consumer.Return.Errors = true
	// Read only a little ahead of the messages in hand, in each partition.
	cfg.Consumer.Fetch.Default = 256 << 10
	cfg.ChannelBufferSize = 64

	return cfg, d.secure(ctx, cfg)
}

// Marshal builds a record. The key determines its partition. The record is not
// compressed: clients such as aiokafka, and so FastStream, have no codec in a plain
// install. A topic's compression.type can override this.
func Marshal(msg *message.Message) *sarama.Record {
	headers := make([]sarama.RecordHeader, 0, len(msg.Metadata)+1)
	for name, value := range driver.Sent(msg) {
		headers = append(headers, sarama.RecordHeader{Key: []byte(name), Value: []byte(value)})
	}

	record := &sarama.Record{
		Key: []byte(msg.Metadata[event.HeaderKey]), Value: msg.Payload, Headers: make([]*sarama.RecordHeader, len(headers)),
	}
	for i := range headers {
		record.Headers[i] = &headers[i]
	}

	return record
}

// ownHeaders has the names of the headers that Millrace writes.
var ownHeaders = map[string]string{
	event.HeaderWatermillID: event.HeaderWatermillID,
	event.HeaderID:          event.HeaderID,
	event.HeaderSource:      event.HeaderSource,
	event.HeaderType:        event.HeaderType,
	event.HeaderSpecVersion: event.HeaderSpecVersion,
	event.HeaderTime:        event.HeaderTime,
	event.HeaderContentType: event.HeaderContentType,
	event.HeaderCorrelation: event.HeaderCorrelation,
	event.HeaderCausation:   event.HeaderCausation,
	event.HeaderTraceParent: event.HeaderTraceParent,
	event.HeaderTraceState:  event.HeaderTraceState,
}

// nameOf returns the name of a header. It allocates nothing for our own, which are most.
func nameOf(key []byte) string {
	if name, ok := ownHeaders[string(key)]; ok {
		return name
	}

	return string(key)
}

// Unmarshal builds a message. A record without an ID gets one derived from its
// coordinates, which are the same on each delivery. It accepts all records: after an
// error the subscriber would redeliver the same record indefinitely.
func Unmarshal(record *sarama.ConsumerMessage) *message.Message {
	headers := make(event.Headers, len(record.Headers)+2)

	for _, header := range record.Headers {
		if header == nil {
			continue
		}

		name := nameOf(header.Key)
		for n := 2; ; n++ {
			if _, taken := headers[name]; !taken {
				break
			}

			name = string(header.Key) + "#" + strconv.Itoa(n)
		}

		headers[name] = string(header.Value)
	}

	origin := "kafka:" + record.Topic + "/" + strconv.Itoa(int(record.Partition)) + "@" + strconv.FormatInt(record.Offset, 10)

	written := record.Timestamp
	if written.UnixMilli() <= 0 { // the producer set none
		written = time.Time{}
	}

	return driver.Received(headers, driver.Identity{
		Key: string(record.Key), Origin: origin, Written: written,
		// A recreated topic repeats offsets, but not times.
		Coordinates: origin + "+" + strconv.FormatInt(record.Timestamp.UnixMilli(), 10),
	}, record.Value)
}
