// Answers as other tools would: Argo CD's about a Lua script, kstatus' (Flux's) about an object.
// It reads a JSON list of questions and writes the list of answers.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

// Question: `Script` is Lua that gets `Object` as obj and `Parameters` as actionParams; without it, kstatus is asked about the object.
type Question struct {
	Script     string                    `json:"script"`
	Parameters map[string]string         `json:"parameters"`
	Object     unstructured.Unstructured `json:"object"`
}

type Answer struct {
	Result any    `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
}

func main() {
	var questions []Question
	if err := json.NewDecoder(os.Stdin).Decode(&questions); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	answers := make([]Answer, len(questions))
	for index, question := range questions {
		result, err := answer(question)
		answers[index].Result = result
		if err != nil {
			answers[index].Error = err.Error()
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func answer(question Question) (any, error) {
	if question.Script == "" {
		computed, err := status.Compute(&question.Object)
		if err != nil {
			return nil, err
		}
		return map[string]string{"status": computed.Status.String(), "message": computed.Message}, nil
	}
	return run(question)
}

// run executes a script as Argo CD's util/lua does: with the libraries base, table and package, for a second.
// Argo CD also has os.time and os.date, which nothing here uses.
func run(question Question) (any, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{{lua.LoadLibName, lua.OpenPackage}, {lua.BaseLibName, lua.OpenBase}, {lua.TabLibName, lua.OpenTable}} {
		call := lua.P{Fn: state.NewFunction(library.open), Protect: true}
		if err := state.CallByParam(call, lua.LString(library.name)); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(ctx)
	parameters := state.NewTable()
	for name, value := range question.Parameters {
		parameters.RawSetString(name, lua.LString(value))
	}
	state.SetGlobal("actionParams", parameters)
	state.SetGlobal("obj", luaValue(state, question.Object.Object))
	if err := state.DoString(question.Script); err != nil {
		if failed, ok := err.(*lua.ApiError); ok {
			failed.StackTrace = ""
		}
		return nil, err
	}
	returned := state.Get(-1)
	if returned.Type() != lua.LTTable {
		return nil, fmt.Errorf("expect table output from Lua script, not %s", returned.Type())
	}
	text, err := luajson.Encode(returned)
	if err != nil {
		return nil, err
	}
	var result any
	if err := json.Unmarshal(text, &result); err != nil {
		return nil, err
	}
	return withEmptyMaps(result, question.Object.Object), nil
}

func luaValue(state *lua.LState, value any) lua.LValue {
	switch typed := value.(type) {
	case bool:
		return lua.LBool(typed)
	case float64:
		return lua.LNumber(typed)
	case int64:
		return lua.LNumber(typed)
	case string:
		return lua.LString(typed)
	case []any:
		list := state.CreateTable(len(typed), 0)
		for _, item := range typed {
			list.Append(luaValue(state, item))
		}
		return list
	case map[string]any:
		table := state.CreateTable(0, len(typed))
		for key, item := range typed {
			table.RawSetString(key, luaValue(state, item))
		}
		return table
	}
	return lua.LNil
}

// withEmptyMaps gives back what Lua cannot tell from an empty list, as Argo CD does before it compares the two objects.
func withEmptyMaps(result, original any) any {
	switch before := original.(type) {
	case map[string]any:
		switch after := result.(type) {
		case []any:
			if len(after) == 0 {
				return map[string]any{}
			}
		case map[string]any:
			for key := range after {
				after[key] = withEmptyMaps(after[key], before[key])
			}
		}
	case []any:
		if after, ok := result.([]any); ok {
			for index := range after {
				if index < len(before) {
					after[index] = withEmptyMaps(after[index], before[index])
				}
			}
		}
	}
	return result
}
