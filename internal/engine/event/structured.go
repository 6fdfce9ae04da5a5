package event

import (
	"bytes"
	"encoding/json"
	"strings"
)

// structuredType is the content type of a CloudEvent in structured mode.
const structuredType = "application/cloudevents+json"

// Unwrap unpacks a CloudEvent in structured mode: the attributes become ce_ headers,
// as in binary mode, and the data becomes the payload. Dapr and Knative publish such
// events. Dapr does not set their content type on Kafka, so an object with the required
// attributes counts as such an event even without the content type. Unwrap returns any
// other payload as it is. It may change headers. See the JSON event format of
// CloudEvents 1.0.2.
func Unwrap(headers Headers, payload []byte) []byte {
	structured := strings.HasPrefix(headers[HeaderContentType], structuredType)

	// This check is cheap for payloads that are not wrapped. An event in binary mode is
	// not wrapped, whatever its data looks like.
	if headers[HeaderSpecVersion] != "" && !structured || !bytes.Contains(payload, []byte(`"specversion"`)) {
		return payload
	}

	var attributes map[string]json.RawMessage
	if json.Unmarshal(payload, &attributes) != nil {
		return payload
	}

	for _, name := range []string{"specversion", "id", "source", "type"} {
		if attribute(attributes[name]) == "" {
			return payload
		}
	}

	data, ok := dataOf(attributes)
	if !ok {
		return payload
	}

	if structured {
		delete(headers, HeaderContentType)
	}

	for name, raw := range attributes {
		header := CloudEventsPrefix + name
		if name == "datacontenttype" {
			header = HeaderContentType
		}

		if value := attribute(raw); value != "" && headers[header] == "" {
			headers[header] = value
		}
	}

	return data
}

// dataOf takes the data out of an event's attributes. Data that is not JSON is a string,
// or binary.
func dataOf(attributes map[string]json.RawMessage) (data []byte, ok bool) {
	data, binary := attributes["data"], attributes["data_base64"]
	contentType := attribute(attributes["datacontenttype"])

	delete(attributes, "data")
	delete(attributes, "data_base64")

	var text string

	switch {
	case binary != nil:
		var decoded []byte
		if json.Unmarshal(binary, &decoded) != nil {
			return nil, false
		}

		return decoded, true
	case contentType != "" && !strings.Contains(contentType, "json") && json.Unmarshal(data, &text) == nil:
		return []byte(text), true
	default:
		return data, true
	}
}

// attribute returns the text of an attribute, which is a string, a number or a boolean.
func attribute(raw json.RawMessage) string {
	var text string
	if len(raw) == 0 || string(raw) == "null" || json.Unmarshal(raw, &text) == nil {
		return text
	}

	return string(raw)
}
