// Original file: proto/pipelora/v1/control.proto

import type { Long } from '@grpc/proto-loader';

export interface Hello {
  'protocol'?: (number);
  'build'?: (string);
  'version'?: (string);
  'node'?: (string);
  'localIndex'?: (number);
  'device'?: (string);
  'deviceName'?: (string);
  'memoryBytes'?: (number | string | Long);
  'threads'?: (number);
  'linkAddress'?: (string);
  'pid'?: (number);
  'nodeDevices'?: (number);
  'instance'?: (string);
  'hostId'?: (string);
  'pciBusId'?: (string);
  'nccl'?: (string);
  'ncclMissing'?: (string);
  'hostMemoryBytes'?: (number | string | Long);
  'capabilityMajor'?: (number);
  'capabilityMinor'?: (number);
}

export interface Hello__Output {
  'protocol': (number);
  'build': (string);
  'version': (string);
  'node': (string);
  'localIndex': (number);
  'device': (string);
  'deviceName': (string);
  'memoryBytes': (number);
  'threads': (number);
  'linkAddress': (string);
  'pid': (number);
  'nodeDevices': (number);
  'instance': (string);
  'hostId': (string);
  'pciBusId': (string);
  'nccl': (string);
  'ncclMissing': (string);
  'hostMemoryBytes': (number);
  'capabilityMajor': (number);
  'capabilityMinor': (number);
}
