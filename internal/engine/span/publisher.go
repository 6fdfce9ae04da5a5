package span

import (
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/millracehq/millrace/internal/engine/event"
)

// Publisher creates spans for the messages that a relay publishes: one for each attempt,
// and one for the time in the outbox, from creation by the database's clock to the
// attempt that succeeds. Each message carries the span of its attempt to the next hop.
func (t *Tracer) Publisher(system string, publisher message.Publisher) message.Publisher {
	if t == nil || t.tracer == nil {
		return publisher
	}

	return tracingPublisher{Publisher: publisher, tracer: t, system: system}
}

type tracingPublisher struct {
	message.Publisher

	tracer *Tracer
	system string
}

// Publish implements message.Publisher.
func (p tracingPublisher) Publish(topic string, messages ...*message.Message) error {
	if !slices.ContainsFunc(messages, p.samples) {
		return p.Publisher.Publish(topic, messages...)
	}

	for _, msg := range messages {
		if err := p.publish(topic, msg); err != nil {
			return err
		}
	}

	return nil
}

// samples reports whether a message is traced.
func (p tracingPublisher) samples(msg *message.Message) bool {
	correlation, _ := uuid.Parse(msg.Metadata[event.HeaderCorrelation]) // the relay sets it

	return p.tracer.samples(msg.Metadata[event.HeaderTraceParent], correlation)
}

func (p tracingPublisher) publish(topic string, msg *message.Message) error {
	if !p.samples(msg) {
		return p.Publisher.Publish(topic, msg)
	}

	id, _ := uuid.Parse(msg.UUID)
	meta := event.MetaOf(id, event.Headers(msg.Metadata))
	parent := p.tracer.context(meta)
	attributes := trace.WithAttributes(append(messaging(p.system, topic, meta, 1), semconv.MessagingMessageBodySize(len(msg.Payload)))...)
	started := time.Now()

	ctx, send := p.tracer.tracer.Start(parent, "send "+topic, attributes, trace.WithSpanKind(trace.SpanKindProducer), trace.WithTimestamp(started),
		trace.WithAttributes(semconv.MessagingOperationTypeSend, semconv.MessagingOperationName("send")))
	defer send.End()

	// The headers are the message's own: the relay builds a message for each attempt.
	propagation.TraceContext{}.Inject(ctx, propagation.MapCarrier(msg.Metadata))

	if err := p.Publisher.Publish(topic, msg); err != nil {
		send.SetStatus(codes.Error, err.Error())

		return err
	}

	if meta.Trace == "" { // the trace begins with the attempt
		parent = ctx
	}

	if created, err := time.Parse(time.RFC3339Nano, msg.Metadata[event.HeaderTime]); err == nil && created.Before(started) {
		_, waited := p.tracer.tracer.Start(parent, "outbox "+topic, attributes, trace.WithTimestamp(created))
		waited.End(trace.WithTimestamp(started))
	}

	return nil
}
