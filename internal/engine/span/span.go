// Package span creates the OpenTelemetry spans for messages: deliveries, transactions,
// the effects that messages need, time in the outbox, and publication to a broker. It
// follows the semantic conventions for messaging.
//
// A trace that a producer began continues here. A conversation without a trace gets one
// if its ID falls within the sample; the trace then has the conversation's ID. So all
// hops and all replicas make the same decision, and a message that is not traced neither
// carries nor stores extra data.
package span

import (
	"context"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/millracehq/millrace/internal/engine/event"
)

// scope names the library that creates the spans.
const scope = "github.com/millracehq/millrace"

// Tracer creates spans. A nil or zero Tracer creates none.
type Tracer struct {
	tracer trace.Tracer // nil if traces are off
	// least is the minimum random part of a conversation's ID in the sample.
	least uint64
}

// randomBits is the number of random bits in an ID: the last 56, as W3C Trace Context
// (level 2) requires of trace IDs. A UUID of version 4, 5 or 7 ends in 62 random bits.
const randomBits = 56

// New returns a tracer that begins a trace for a share of the conversations without one:
// sample, from 0 to 1. The provider must use IDs as its ID generator and must not sample.
func New(provider trace.TracerProvider, sample float64) *Tracer {
	return &Tracer{tracer: provider.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)), least: uint64(math.Round((1 - sample) * (1 << randomBits)))}
}

// samples reports whether a message is traced: its parent decides, if it has one.
func (t *Tracer) samples(traceParent string, correlation uuid.UUID) bool {
	if t == nil || t.tracer == nil {
		return false
	}

	if traceParent != "" {
		flags, err := strconv.ParseUint(traceParent[len(traceParent)-2:], 16, 8)

		return err == nil && trace.TraceFlags(flags).IsSampled()
	}

	return binary.BigEndian.Uint64(correlation[8:])&(1<<randomBits-1) >= t.least
}

// IDs generates IDs. The trace of a conversation has the conversation's ID.
type IDs struct{}

type conversation struct{}

// NewIDs implements the IDGenerator of OpenTelemetry's SDK.
func (IDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	id, ok := ctx.Value(conversation{}).(uuid.UUID)
	if !ok {
		id = uuid.New()
	}

	return trace.TraceID(id), newSpanID()
}

// NewSpanID implements the IDGenerator of OpenTelemetry's SDK.
func (IDs) NewSpanID(context.Context, trace.TraceID) trace.SpanID { return newSpanID() }

func newSpanID() (id trace.SpanID) {
	for !id.IsValid() {
		binary.BigEndian.PutUint64(id[:], rand.Uint64())
	}

	return id
}

// context returns the context of a span that follows from a message.
func (t *Tracer) context(meta event.Meta) context.Context {
	ctx := context.WithValue(context.Background(), conversation{}, meta.Correlation)

	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{
		event.HeaderTraceParent: meta.Trace, event.HeaderTraceState: meta.TraceState,
	})
}

// Span is a span that has not ended. A nil Span belongs to a message that is not
// traced: its methods do nothing.
type Span struct {
	tracer trace.Tracer
	span   trace.Span
}

// Delivery describes a message on its way to a consumer.
type Delivery struct {
	Consumer, Topic string
	// Origin is where the message was read, such as "kafka:orders.created/3@42".
	Origin string
	// Bytes is the size of the payload.
	Bytes int
}

// Deliver starts the span for a delivery of the message that meta identifies.
func (t *Tracer) Deliver(meta event.Meta, d Delivery) *Span {
	if !t.samples(meta.Trace, meta.Correlation) {
		return nil
	}

	system, place, _ := strings.Cut(d.Origin, ":")

	attributes := append(messaging(system, d.Topic, meta, 6),
		semconv.MessagingOperationTypeProcess, semconv.MessagingOperationName("process"),
		semconv.MessagingMessageBodySize(d.Bytes), attribute.String("millrace.consumer", d.Consumer))

	// A Kafka origin also has a partition and an offset.
	if at := strings.LastIndexByte(place, '/'); at >= 0 && system == "kafka" {
		partition, text, _ := strings.Cut(place[at+1:], "@")
		attributes = append(attributes, semconv.MessagingDestinationPartitionID(partition))

		if offset, err := strconv.Atoi(text); err == nil {
			attributes = append(attributes, semconv.MessagingKafkaOffset(offset))
		}
	}

	_, s := t.tracer.Start(t.context(meta), "process "+d.Topic, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(attributes...))

	return &Span{tracer: t.tracer, span: s}
}

// messaging returns the attributes that all spans of a message have, with room for more.
func messaging(system, topic string, meta event.Meta, more int) []attribute.KeyValue {
	if system == "embedded" {
		system = "millrace"
	}

	return append(make([]attribute.KeyValue, 0, 4+more),
		semconv.MessagingSystemKey.String(system), semconv.MessagingDestinationName(topic),
		semconv.MessagingMessageID(meta.ID.String()), semconv.MessagingMessageConversationID(meta.Correlation.String()),
	)
}

// Identify makes the messages that follow from meta children of the span.
func (s *Span) Identify(meta *event.Meta) {
	if s == nil {
		return
	}

	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(s.context(), carrier)
	meta.Trace, meta.TraceState = carrier[event.HeaderTraceParent], carrier[event.HeaderTraceState]
}

func (s *Span) context() context.Context {
	return trace.ContextWithSpan(context.Background(), s.span)
}

// Effect starts a span for a call to another system. The returned context carries it.
func (s *Span) Effect(ctx context.Context, consumer string) (context.Context, *Span) {
	if s == nil {
		return ctx, nil
	}

	ctx, effect := s.tracer.Start(trace.ContextWithSpan(ctx, s.span), "perform "+consumer)

	return ctx, &Span{tracer: s.tracer, span: effect}
}

// End ends the span. outcome is the outcome of a delivery; reason and text say why it
// failed. Any of them may be empty.
func (s *Span) End(outcome, reason, text string) {
	if s == nil {
		return
	}

	if outcome != "" {
		s.span.SetAttributes(attribute.String("millrace.outcome", outcome))
	}

	if reason != "" {
		s.span.SetAttributes(semconv.ErrorTypeKey.String(reason))
		s.span.SetStatus(codes.Error, text)
	}

	s.span.End()
}

// Transaction is a transaction that applies a batch. It has a span in a trace of its
// own, because its messages belong to many traces, and a span in the trace of each
// traced message. Links connect these traces.
type Transaction struct {
	batch trace.Span
	each  []trace.Span
}

// Transact starts the spans of a transaction. messages holds the span of each message in
// the transaction. The result is nil if no message is traced.
func (t *Tracer) Transact(consumer string, messages []*Span) *Transaction {
	traced := slices.DeleteFunc(slices.Clone(messages), func(s *Span) bool { return s == nil })
	if len(traced) == 0 {
		return nil
	}

	started := trace.WithTimestamp(time.Now())
	links := make([]trace.Link, len(traced))

	for i, s := range traced {
		links[i].SpanContext = s.span.SpanContext()
	}

	attributes := trace.WithAttributes(
		attribute.String("millrace.consumer", consumer), semconv.MessagingBatchMessageCount(len(messages)), semconv.DBSystemNamePostgreSQL)

	_, batch := t.tracer.Start(context.Background(), "batch "+consumer, started, trace.WithLinks(links...), attributes)
	tx := &Transaction{batch: batch, each: make([]trace.Span, len(traced))}
	link := trace.WithLinks(trace.Link{SpanContext: batch.SpanContext()})

	for i, s := range traced {
		_, tx.each[i] = t.tracer.Start(s.context(), "transaction "+consumer, started, link, attributes)
	}

	return tx
}

// End ends the spans of the transaction. failed is true if it was rolled back.
func (t *Transaction) End(failed bool) {
	if t == nil {
		return
	}

	ended := trace.WithTimestamp(time.Now())

	for _, s := range append(t.each, t.batch) {
		if failed {
			s.SetStatus(codes.Error, "rolled back")
		}

		s.End(ended)
	}
}
