// Original file: proto/pipelora/v1/control.proto


export interface Heartbeat {
}

export interface Heartbeat__Output {
}
