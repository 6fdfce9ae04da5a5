package asyncapi

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
)

// Example is a payload that the service accepts or publishes.
type Example struct {
	Name    string          `json:"name"`
	Payload json.RawMessage `json:"payload"`
}

// Source is what a document describes.
type Source struct {
	// Title and Version are those of the service.
	Title, Version string
	Payloads       []Payload
	// Examples are by topic.
	Examples map[string][]Example
	Brokers  *broker.Set
}

// Document is an AsyncAPI document, version 3.0.0.
type Document struct {
	AsyncAPI           string               `json:"asyncapi"`
	Info               Info                 `json:"info"`
	DefaultContentType string               `json:"defaultContentType"`
	Servers            map[string]Server    `json:"servers,omitempty"`
	Channels           map[string]Channel   `json:"channels"`
	Operations         map[string]Operation `json:"operations"`
	Components         Components           `json:"components"`
}

// Info describes the service.
type Info struct {
	Title       string         `json:"title"`
	Version     string         `json:"version"`
	Description string         `json:"description"`
	License     map[string]any `json:"license"`
}

// Server is a broker.
type Server struct {
	Host     string `json:"host"`
	Protocol string `json:"protocol"`
}

// Ref refers to another part of the document.
type Ref struct {
	Ref string `json:"$ref"`
}

// Channel is a topic.
type Channel struct {
	Address     string         `json:"address"`
	Title       string         `json:"title"`
	Description string         `json:"description"`
	Messages    map[string]Ref `json:"messages"`
	Bindings    map[string]any `json:"bindings,omitempty"`
}

// Operation is what the service does with a topic: action "receive" for each consumer, or
// "send".
type Operation struct {
	Action      string         `json:"action"`
	Channel     Ref            `json:"channel"`
	Summary     string         `json:"summary"`
	Messages    []Ref          `json:"messages"`
	Bindings    map[string]any `json:"bindings,omitempty"`
	Description string         `json:"description,omitempty"`
}

// Components holds what channels refer to.
type Components struct {
	Schemas  map[string]json.RawMessage `json:"schemas"`
	Messages map[string]Message         `json:"messages"`
}

// Message is a payload with its headers.
type Message struct {
	Name          string         `json:"name"`
	Title         string         `json:"title"`
	Summary       string         `json:"summary,omitempty"`
	ContentType   string         `json:"contentType"`
	Headers       Ref            `json:"headers"`
	Payload       any            `json:"payload"`
	CorrelationID map[string]any `json:"correlationId"`
	Bindings      map[string]any `json:"bindings,omitempty"`
	Examples      []Example      `json:"examples,omitempty"`
}

const about = `Messages are JSON. Those with the same key are applied in order.

A message needs no header. Headers of CloudEvents 1.0 are read if there are any: in binary mode with the prefix ce_ (on AMQP cloudEvents: or cloudEvents_), and in structured mode, with the attributes around the payload. The id of a message is, in this order, _watermill_message_uuid, ce_id with ce_source, the AMQP property message_id, and on Kafka its coordinates. A message whose id has been applied is not applied again.

Unknown fields are ignored. For an optional field, null is the same as no field.`

// New returns the document that describes a service.
func New(s Source) Document {
	d := Document{
		AsyncAPI: "3.0.0", DefaultContentType: contentType,
		Info: Info{
			Title: s.Title, Version: s.Version, Description: about,
			License: map[string]any{"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
		},
		Servers: map[string]Server{}, Channels: map[string]Channel{}, Operations: map[string]Operation{},
		Components: Components{
			Schemas:  map[string]json.RawMessage{schemaHeaders: headerSchema(false), schemaPublished: headerSchema(true)},
			Messages: map[string]Message{},
		},
	}

	for i, server := range s.Brokers.Servers() {
		d.Servers[fmt.Sprintf("%s-%d", server.Name, i+1)] = Server{Host: server.Host, Protocol: server.Protocol}
	}

	for _, p := range s.Payloads {
		d.add(p, s.Examples[p.Topic], s.Brokers.PlaceOf(p.Topic))
	}

	return d
}

const (
	contentType           = "application/json"
	structuredContentType = "application/cloudevents+json"
	structuredSuffix      = ".structured"
	schemaHeaders         = "headers"
	schemaPublished       = "publishedHeaders"
)

// add describes a topic.
func (d *Document) add(p Payload, examples []Example, at broker.Place) {
	d.Components.Schemas[p.Topic] = p.Schema
	d.Components.Messages[p.Topic] = message(p, examples)
	refs := []Ref{{"#/channels/" + p.Topic + "/messages/" + p.Topic}}

	channel := Channel{
		Address: at.KafkaTopic, Title: p.Topic, Description: describe(p), Bindings: channelBindings(at),
		Messages: map[string]Ref{p.Topic: {"#/components/messages/" + p.Topic}},
	}
	if at.Kind == broker.RabbitMQ {
		channel.Address = at.Queue
	}

	received := refs

	if len(p.Consumers) > 0 {
		name := p.Topic + structuredSuffix
		d.Components.Messages[name] = structured(p, examples)
		channel.Messages[name] = Ref{"#/components/messages/" + name}
		received = []Ref{refs[0], {"#/channels/" + p.Topic + "/messages/" + name}}
	}

	d.Channels[p.Topic] = channel

	for _, consumer := range p.Consumers {
		d.Operations[consumer] = Operation{
			Action: "receive", Channel: Ref{"#/channels/" + p.Topic}, Messages: received,
			Summary: "Consumer " + consumer, Bindings: receiveBindings(at),
		}
	}

	if len(p.Publishers) > 0 {
		d.Operations[p.Topic+".publish"] = Operation{
			Action: "send", Channel: Ref{"#/channels/" + p.Topic}, Messages: refs,
			Summary: "Published by " + strings.Join(p.Publishers, ", "), Bindings: sendBindings(at),
		}
	}
}

// describe says who uses a topic.
func describe(p Payload) string {
	var sentences []string
	if len(p.Consumers) > 0 {
		sentences = append(sentences, "Consumed by "+strings.Join(p.Consumers, ", ")+".")
	}

	if len(p.Publishers) > 0 {
		sentences = append(sentences, "Published by "+strings.Join(p.Publishers, ", ")+".")
	}

	return strings.Join(sentences, " ")
}

func message(p Payload, examples []Example) Message {
	headers := schemaHeaders
	if len(p.Consumers) == 0 {
		headers = schemaPublished
	}

	return Message{
		Name: p.Topic, Title: p.Topic, ContentType: contentType, Headers: Ref{"#/components/schemas/" + headers},
		Payload: Ref{"#/components/schemas/" + p.Topic}, Examples: examples,
		CorrelationID: map[string]any{"description": "The id of the message that started the conversation.", "location": "$message.header#/" + event.HeaderCorrelation},
		Bindings: map[string]any{
			"kafka": map[string]any{"key": map[string]any{"type": "string", "description": "The id of what the message is about. If it is missing, the key in the payload counts."}, "bindingVersion": "0.5.0"},
			"amqp":  map[string]any{"messageType": p.Topic, "bindingVersion": "0.3.0"},
		},
	}
}

// structured is the message as a CloudEvent in structured mode.
func structured(p Payload, examples []Example) Message {
	m := message(p, nil)
	m.Name, m.ContentType = p.Topic+structuredSuffix, structuredContentType
	m.Title, m.Summary = p.Topic+", structured", "A CloudEvent in structured mode, as Dapr and Knative publish it."
	m.CorrelationID = map[string]any{"description": "An extension attribute.", "location": "$message.payload#/" + event.HeaderCorrelation}

	text := map[string]any{"type": "string", "minLength": 1}
	m.Payload = map[string]any{
		"type": "object", "required": []string{"specversion", "id", "source", "type", "data"},
		"properties": map[string]any{
			"specversion": text, "id": text, "source": text, "type": text,
			"time": map[string]any{"type": "string", "format": "date-time"}, "datacontenttype": text,
			event.HeaderCorrelation: text, event.HeaderTraceParent: text, event.HeaderTraceState: text,
			"data": Ref{"#/components/schemas/" + p.Topic},
		},
	}

	for _, e := range examples {
		m.Examples = append(m.Examples, Example{Name: e.Name, Payload: fmt.Appendf(nil,
			`{"specversion":"1.0","id":"01890a5d-ac96-774b-bcce-b302099a8057","source":"shop","type":%q,"data":%s}`, p.Topic, e.Payload)})
	}

	return m
}

func channelBindings(at broker.Place) map[string]any {
	return only(at, map[string]any{
		"kafka": map[string]any{"topic": at.KafkaTopic, "bindingVersion": "0.5.0"},
		"amqp": map[string]any{
			"is":       "routingKey",
			"exchange": map[string]any{"name": at.Exchange, "type": "direct", "durable": true, "autoDelete": false}, "bindingVersion": "0.3.0",
		},
	})
}

func receiveBindings(at broker.Place) map[string]any {
	return only(at, map[string]any{
		"kafka": map[string]any{"groupId": map[string]any{"type": "string", "enum": []string{at.KafkaGroup}}, "bindingVersion": "0.5.0"},
		"amqp":  map[string]any{"ack": true, "bindingVersion": "0.3.0"},
	})
}

func sendBindings(at broker.Place) map[string]any {
	return only(at, map[string]any{"amqp": map[string]any{"deliveryMode": 2, "mandatory": true, "bindingVersion": "0.3.0"}})
}

// only leaves the bindings of the broker that carries a topic. Those of all brokers are
// left for the embedded one, because the topic could be on any.
func only(at broker.Place, bindings map[string]any) map[string]any {
	switch at.Kind {
	case broker.Kafka:
		delete(bindings, "amqp")
	case broker.RabbitMQ:
		delete(bindings, "kafka")
	}

	return bindings
}

// headerSchema describes the headers that are read, or those of a published message.
func headerSchema(published bool) json.RawMessage {
	type property struct {
		Type        string `json:"type"`
		Description string `json:"description"`
		Format      string `json:"format,omitempty"`
	}

	text := func(description string) property { return property{Type: "string", Description: description} }
	schema := map[string]any{"type": "object", "properties": map[string]property{
		event.HeaderWatermillID: text("The id of the message, if it was sent with Watermill."),
		event.HeaderID:          text("CloudEvents: the id of the message, unique with ce_source."),
		event.HeaderSource:      text("CloudEvents: who sent the message; " + event.Source + " for those that are published."),
		event.HeaderType:        text("CloudEvents: the topic, in messages that are published."),
		event.HeaderSpecVersion: text("CloudEvents: the version of the specification, 1.0."),
		event.HeaderTime:        {Type: "string", Format: "date-time", Description: "CloudEvents: when the message was written."},
		event.HeaderContentType: text("The type of the payload."),
		event.HeaderCorrelation: text("The id of the message that started the conversation."),
		event.HeaderCausation:   text("The id of the message that caused this one."),
		event.HeaderTraceParent: text("W3C Trace Context; also with the prefix ce_."),
		event.HeaderTraceState:  text("W3C Trace Context; also with the prefix ce_."),
	}}

	if published {
		schema["required"] = []string{
			event.HeaderID, event.HeaderSource, event.HeaderType, event.HeaderSpecVersion, event.HeaderTime, event.HeaderContentType, event.HeaderCorrelation,
		}
	}

	encoded, _ := json.Marshal(schema) // strings and maps never fail

	return encoded
}

// MarshalIndent returns the document as JSON for people.
func (d *Document) MarshalIndent() ([]byte, error) { return json.MarshalIndent(d, "", "  ") }
